package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// sendFlags are the flags of `goshield send`.
type sendFlags struct {
	target      target
	mac         string
	service     string
	keyFile     string
	interactive bool
	count       int
	interval    time.Duration
	timeout     time.Duration
	verbose     bool
}

func newSendCommand(getenv func(string) string) *cobra.Command {
	f := sendFlags{target: target{getenv: getenv}}
	cmd := &cobra.Command{
		Use:   "send [flags] BODY",
		Short: "Play one device: enrol or resume, send a request, print the answer",
		Long: `Play one device. It enrols the first time and keeps its token in a file; later it
resumes with that. BODY is a JSON value, or with --protocol-version 2 any bytes; "-" reads it
from standard input.

With --interactive the connection is kept: each line of standard input is a
body, answers and pushes are printed as they come, and the connection is made
anew when it breaks.

Answers go to standard output, all else to standard error. Ends with 1 if a
request failed.`,
		Example: `  goshield send --mac 00:1a:2b:3c:4d:5e '{"hello":"world"}'
  goshield send --mac 00:1a:2b:3c:4d:5e --count 10 --interval 1s '"tick"'
  goshield send --mac 00:1a:2b:3c:4d:5e --interactive`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s := sender{flags: &f, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), errOut: cmd.ErrOrStderr()}
			return s.run(cmd.Context(), args)
		},
	}
	flags := cmd.Flags()
	f.target.addFlags(flags)
	f.target.addVersionFlag(flags)
	flags.StringVar(&f.mac, "mac", "", "the device's MAC `address` (required)")
	flags.StringVar(&f.service, "service", "echo", "service to ask")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "keep the connection and send each line of standard input")
	flags.IntVar(&f.count, "count", 1, "send BODY so many times")
	flags.DurationVar(&f.interval, "interval", time.Second, "from one to the next, with --count")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Second, "how long connecting, and each answer, may take")
	flags.StringVar(&f.target.tokenDir, "token-dir", "", "`directory` of tokens (default: tokens in the data directory of context.json, else ~/.local/state/goshield/tokens)")
	flags.StringVar(&f.keyFile, "key-file", "", "`file` with the device's own key (64 hex digits), where enrolment is key")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "tell of connections and tokens")
	return cmd
}

// sender is one run of `goshield send`.
type sender struct {
	flags       *sendFlags
	in          io.Reader
	out, errOut io.Writer

	mu     sync.Mutex // guards writing: hooks and pushes come from the client's goroutines
	client *client.Client
	failed int
}

func (s *sender) run(ctx context.Context, args []string) error {
	body, err := s.body(args)
	if err != nil {
		return err
	}
	cfg, where, err := s.config()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	dialling, cancel := context.WithTimeout(ctx, s.flags.timeout)
	defer cancel()
	if s.client, err = client.Dial(dialling, cfg); err != nil {
		return explainDial(err, where)
	}
	defer s.client.Close()
	if s.flags.interactive {
		return s.interact(ctx)
	}
	return s.repeat(ctx, body)
}

// body reads and checks the argument; nil with --interactive.
func (s *sender) body(args []string) ([]byte, error) {
	switch {
	case s.flags.interactive && len(args) > 0:
		return nil, usagef("with --interactive bodies come from standard input, not as arguments")
	case s.flags.interactive:
		return nil, nil
	case len(args) == 0:
		return nil, usagef("no BODY to send: give a JSON value, as in '{\"hello\":\"world\"}'")
	case len(args) > 1:
		return nil, usagef("one BODY only, got %d arguments: put quotes around it", len(args))
	case s.flags.count < 1:
		return nil, usagef("--count: must be at least 1, got %d", s.flags.count)
	}
	body := []byte(args[0])
	if args[0] == "-" {
		var err error
		if body, err = io.ReadAll(io.LimitReader(s.in, 2*wire.MaxPayload)); err != nil {
			return nil, fmt.Errorf("read the body from standard input: %w", err)
		}
	}
	if s.flags.target.version == wire.Version2 {
		return body, nil
	}
	body = bytes.TrimSpace(body)
	if err := checkJSON(body); err != nil {
		return nil, usageError{err}
	}
	return body, nil
}

func (s *sender) config() (cfg client.Config, r resolved, err error) {
	f := s.flags
	if f.mac == "" {
		return cfg, r, usagef("no --mac: the device's address, as in 00:1a:2b:3c:4d:5e")
	}
	id, err := wire.ClientIDFromMAC(f.mac)
	if err != nil {
		return cfg, r, usagef("--mac: %w", err)
	}
	if r, err = f.target.resolve(); err != nil {
		return cfg, r, err
	}
	dir := f.target.tokenDir
	if dir == "" {
		if dir, err = r.defaultTokenDir(f.target.getenv); err != nil {
			return cfg, r, err
		}
	}
	store, err := client.FileStore(dir)
	if err != nil {
		return cfg, r, err
	}
	cfg = client.Config{
		Addr: r.addr, TLS: r.tls, ClientID: id, TokenStore: store, DeviceKey: r.deviceKey(id),
		Version: f.target.version, Agent: "goshield send", RequestTimeout: f.timeout, ConnectTimeout: f.timeout,
		OnPush: s.printPush,
	}
	if f.keyFile != "" {
		if cfg.DeviceKey, err = f.deviceKey(); err != nil {
			return cfg, r, err
		}
	}
	if f.verbose || f.interactive {
		cfg.Hooks = s.hooks()
	}
	return cfg, r, nil
}

// deviceKey reads the key of --key-file.
func (f *sendFlags) deviceKey() (*[32]byte, error) {
	if f.target.groupKeyFile != "" {
		return nil, usagef("--key-file and --group-key-file: one of them is enough")
	}
	key, err := readKey("--key-file", f.keyFile)
	if err != nil {
		return nil, err
	}
	return (*[32]byte)(key), nil
}

func (s *sender) hooks() client.Hooks {
	return client.Hooks{
		OnConnect: func(c client.Connected) {
			how := "resumed"
			if c.Enrolled {
				how = "enrolled"
			}
			s.note("%s in %v", how, c.Total().Round(10*time.Microsecond))
		},
		OnDisconnect: func(err error) {
			if err == nil {
				s.note("moved to another gateway, as asked")
				return
			}
			s.note("disconnected: %v", err)
		},
		OnConnectFailed: func(err error) { s.note("cannot connect: %v", err) },
		OnRotate:        func() { s.note("got a new token") },
	}
}

// repeat sends the body --count times.
func (s *sender) repeat(ctx context.Context, body []byte) error {
	ticker := time.NewTicker(max(s.flags.interval, time.Nanosecond))
	defer ticker.Stop()
	for i := range s.flags.count {
		if i > 0 {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return s.verdict(i)
			}
		}
		if err := s.request(ctx, body); err != nil {
			if s.flags.count == 1 {
				return err
			}
			s.failed++
			s.note("%v", err)
			if s.client.Err() != nil {
				return s.verdict(i + 1) // there will be no connection again
			}
		}
	}
	return s.verdict(s.flags.count)
}

// interact sends what is typed.
func (s *sender) interact(ctx context.Context) error {
	prompt := terminalOf(s.in) != nil
	isJSON := s.flags.target.version != wire.Version2
	if prompt {
		what := "a body"
		if isJSON {
			what = "a JSON value"
		}
		s.note("each line is %s for service %q; Ctrl-D ends", what, s.flags.service)
	}
	lines := make(chan string)
	go readLines(s.in, lines) // ends with the input, or with the process: a read cannot be taken back
	sent := 0
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return s.verdict(sent)
			}
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			sent++
			var err error
			if isJSON {
				err = checkJSON([]byte(line))
			}
			if err == nil {
				err = s.request(ctx, []byte(line))
			}
			if err != nil {
				s.failed++
				s.note("%v", err)
			}
		case <-s.client.Done():
			return fmt.Errorf("the connection ended for good: %w", s.client.Err())
		case <-ctx.Done():
			return s.verdict(sent)
		}
	}
}

func readLines(in io.Reader, lines chan<- string) {
	defer close(lines)
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, 2*wire.MaxPayload)
	for scanner.Scan() {
		lines <- scanner.Text()
	}
}

// request sends one body and prints its answer.
func (s *sender) request(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.flags.timeout)
	defer cancel()
	answer, err := s.client.Request(ctx, s.flags.service, body)
	if err != nil {
		return err
	}
	s.print("%s\n", answer)
	return nil
}

// verdict is the error of a run of which some requests failed.
func (s *sender) verdict(sent int) error {
	if s.failed == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d requests failed", s.failed, sent)
}

func (s *sender) printPush(p client.Push) { s.print("push %s %s\n", p.Service, p.Body) }

func (s *sender) print(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format, args...)
}

// note tells what is no answer.
func (s *sender) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.errOut, "- "+format+"\n", args...)
}

// checkJSON says where a body is no JSON.
func checkJSON(body []byte) error {
	if wire.ValidJSON(body) {
		return nil
	}
	if len(body) == 0 {
		return errors.New("the body is empty: a JSON value is wanted")
	}
	var value any
	err := json.Unmarshal(body, &value)
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return errors.New("the body is nested too deeply")
	}
	at := min(max(int(syntax.Offset)-1, 0), len(body)) // of the byte at fault
	if strings.HasPrefix(err.Error(), "unexpected end") {
		at = len(body)
	}
	const around = 30
	before, after := body[max(at-around, 0):at], body[at:min(at+around, len(body))]
	return fmt.Errorf("the body is no JSON: %w, at byte %d\n  %s\n  %s^", err, at+1, printable(before)+printable(after), strings.Repeat(" ", len([]rune(printable(before)))))
}

// printable replaces what would break the line.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, string(b))
}
