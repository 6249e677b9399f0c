//go:build unix

package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptor is a copy of a listener's, for a Socket. Close it with CloseDescriptor.
//
// (*net.TCPListener).File would not do: to give its descriptor to a new process is to make the socket, which all
// copies share, one that blocks.
func Descriptor(ln *net.TCPListener) (int, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, failed := -1, error(nil)
	if err := raw.Control(func(own uintptr) {
		fd, failed = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	return fd, failed
}

// CloseDescriptor closes what Descriptor gave.
func CloseDescriptor(fd int) { _ = unix.Close(fd) }

// Start starts this program again, from its file as it is now, with the same arguments, and with the sockets and the state (any JSON),
// and waits until the new process says that it is ready. An error means that this one has to go on: the other one is
// not there, or was ended. The new process is not a child to be waited for by the caller.
func Start(sockets []Socket, state any, patience time.Duration) (pid int, err error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	return start(exe, os.Args, os.Environ(), sockets, state, patience)
}

func start(exe string, args, environ []string, sockets []Socket, state any, patience time.Duration) (int, error) {
	text, err := encode(sockets, state)
	if err != nil {
		return 0, err
	}
	theirs, tell, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer tell.Close()
	hear, answer, err := os.Pipe()
	if err != nil {
		_ = theirs.Close()
		return 0, err
	}
	defer hear.Close()
	files := []uintptr{0, 1, 2, theirs.Fd(), answer.Fd()}
	for _, s := range sockets {
		files = append(files, uintptr(s.FD))
	}
	environ = slices.DeleteFunc(slices.Clone(environ), func(e string) bool { return strings.HasPrefix(e, Env+"=") })
	pid, err := syscall.ForkExec(exe, args, &syscall.ProcAttr{Env: append(environ, Env+"=1"), Files: files}) //nolint:gosec // this very program
	_, _ = theirs.Close(), answer.Close()
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", exe, err)
	}
	process, _ := os.FindProcess(pid) // never fails on Unix
	ended := make(chan string, 1)
	go func() { // ends with the new process, or with this one
		state, err := process.Wait()
		if err != nil {
			ended <- err.Error()
			return
		}
		ended <- state.String()
	}()
	if err := converse(tell, hear, text, patience); err != nil {
		_ = process.Kill()
		return 0, fmt.Errorf("the new process was not ready (%w): %s", err, <-ended)
	}
	return pid, nil
}

func encode(sockets []Socket, state any) ([]byte, error) {
	var m message
	var err error
	if m.State, err = json.Marshal(state); err != nil {
		return nil, err
	}
	for _, s := range sockets {
		m.Sockets = append(m.Sockets, s.Address)
	}
	return json.Marshal(m)
}

// converse sends the message and waits for the answer.
func converse(tell, hear *os.File, text []byte, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	_ = tell.SetWriteDeadline(deadline)
	if _, err := tell.Write(text); err != nil && !errors.Is(err, syscall.EPIPE) { // of one that ended, the answer tells
		return err
	}
	_ = hear.SetReadDeadline(deadline)
	got := make([]byte, len(readyWord))
	_, err := io.ReadFull(hear, got)
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("it ended")
	case err != nil:
		return err
	case string(got) != readyWord:
		return fmt.Errorf("it said %q", got)
	}
	return nil
}
