package balancer

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// giveUpAfter has the system end accepted connections whose client acknowledges nothing for so long while something is
// under way to it. What a listening socket has is passed on to those it accepts.
func giveUpAfter(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if controlErr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		}); controlErr != nil {
			return controlErr
		}
		return err
	}
}
