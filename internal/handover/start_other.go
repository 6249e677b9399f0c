//go:build !unix

package handover

import (
	"errors"
	"net"
	"time"
)

// Descriptor fails: on this system sockets cannot be handed over.
func Descriptor(*net.TCPListener) (int, error) { return -1, errors.ErrUnsupported }

// CloseDescriptor does nothing.
func CloseDescriptor(int) {}

// Start fails, as Descriptor does.
func Start([]Socket, any, time.Duration) (pid int, err error) { return 0, errors.ErrUnsupported }
