//go:build !linux

package balancer

import (
	"syscall"
	"time"
)

// giveUpAfter leaves dead connections to the idle timeout.
func giveUpAfter(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
