//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// A role is what this program does when it is a child of itself: it runs until
// its standard input ends, and may answer requests until then, one JSON value
// each way.
type role func(args []string, ask *json.Decoder, answer *json.Encoder) error

var roles = map[string]role{
	"echo-role":   echoRole,
	"copy-role":   copyRole,
	"load-role":   loadRole,
	"visit-role":  visitRole,
	"source-role": sourceRole,
	"drain-role":  drainRole,
	"crowd-role":  crowdRole,
	"greet-role":  greetRole,
	"ask-role":    askRole,
}

func runRole(r role, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := r(args, json.NewDecoder(bufio.NewReader(stdin)), json.NewEncoder(stdout))
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// untilEOF is the end of a role that answers nothing.
func untilEOF(ask *json.Decoder) error {
	var ignored any
	return ask.Decode(&ignored)
}

// peer is a child in a role, seen from the parent.
type peer struct {
	*process
	in  io.Writer
	out *json.Decoder
}

// startRole starts this program in a role, which args begin with. env is added to
// the environment.
func startRole(name string, env []string, on cores, args ...string) (*peer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, pipe, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = pipe
	p, err := start(name, cmd, on)
	pipe.Close()
	if err != nil {
		out.Close()
		return nil, err
	}
	p.pipes = []io.Closer{in, out}
	return &peer{process: p, in: in, out: json.NewDecoder(bufio.NewReader(out))}, nil
}

// ask sends a request, unless it is nil, and waits for the answer. A peer that
// does not answer before ctx ends or timeout is over is killed.
func (p *peer) ask(ctx context.Context, timeout time.Duration, request, answer any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer for %s", timeout))
	defer cancel()
	defer context.AfterFunc(ctx, p.stop)()
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return err
		}
		if _, err := p.in.Write(append(text, '\n')); err != nil {
			return p.fault(ctx, err)
		}
	}
	if err := p.out.Decode(answer); err != nil {
		return p.fault(ctx, err)
	}
	return nil
}

// do asks for something whose answer says no more than whether it was done.
func (p *peer) do(ctx context.Context, timeout time.Duration, request any) error {
	var answer loadAnswer
	err := p.ask(ctx, timeout, request, &answer)
	if err == nil && answer.Fault != "" {
		err = errors.New(answer.Fault)
	}
	return err
}

// fault finds the reason for an error of reading or writing.
func (p *peer) fault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", p.name, context.Cause(ctx))
	}
	p.stop()
	if p.output.String() != "" {
		return p.ended()
	}
	return fmt.Errorf("%s: %w", p.name, err)
}
