package relay

import (
	"net"

	"golang.org/x/sys/unix"
)

// tcpClose is TCP_CLOSE in the kernel's include/net/tcp_states.h.
const tcpClose = 7

// wasReset reports whether the end of stream that was just read from c stands for
// a RST. Linux tells of a RST in one system call only: when a write got it,
// the read that waits meanwhile sees an ordinary end. Where this process has sent
// its FIN on c already, no write can have got it, and the closed state says nothing.
func wasReset(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == tcpClose
	})
	return err == nil && closed
}
