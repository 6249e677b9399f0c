//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// process is a child of the benchmark: a contestant, the echo server, a load.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *tail         // what it said on standard error
	done   chan struct{} // closed when it has ended
	pipes  []io.Closer   // our ends; closed by stop
}

// start starts a process in a group of its own, on certain cores. It ends when
// stop is called, or with the benchmark itself.
func start(name string, cmd *exec.Cmd, on cores) (*process, error) {
	p := &process{name: name, cmd: cmd, output: &tail{}, done: make(chan struct{})}
	if cmd.Stderr == nil {
		cmd.Stderr = p.output
	}
	if cmd.Stdout == nil {
		cmd.Stdout = p.output
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := on.run(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go p.wait()
	return p, nil
}

// wait ends when the process has. Why stands in cmd.ProcessState then.
func (p *process) wait() {
	_ = p.cmd.Wait()
	close(p.done)
}

// stop ends the process and those it started, and returns when it has ended. It
// may be called again.
func (p *process) stop() {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
	// Its children may be slower than it was itself.
	p.signal(syscall.SIGKILL)
	<-p.done
	for _, pipe := range p.pipes {
		_ = pipe.Close()
	}
}

// signal reaches the whole group. It has no one to reach when all have ended.
func (p *process) signal(s syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, s) }

// ended is the error of a process that ended when it should not have, nil if it
// runs.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s: %s", p.name, p.cmd.ProcessState, p.output)
	default:
		return nil
	}
}

// pids are those of the process and its children.
func (p *process) pids() ([]int, error) { return family(p.cmd.Process.Pid) }

// tail keeps the last part of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

const maxTail = 4096

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if extra := len(t.text) - maxTail; extra > 0 {
		t.text = append(t.text[:0], t.text[extra:]...)
	}
	return len(b), nil
}

// String is what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.text))
}
