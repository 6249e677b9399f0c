//go:build linux && race

package quicktcp

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// The race detector has to see that what was sent was written before it is read. The calls of package syscall tell it.

func receive(fd uintptr, b []byte) (int, unix.Errno) { return outcome(syscall.Read(int(fd), b)) }

func transmit(fd uintptr, b []byte) (int, unix.Errno) { return outcome(syscall.Write(int(fd), b)) }

func outcome(n int, err error) (int, unix.Errno) {
	var errno unix.Errno
	_ = errors.As(err, &errno) // those calls know no other errors
	return max(n, 0), errno
}
