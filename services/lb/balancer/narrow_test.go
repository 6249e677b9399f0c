package balancer

import (
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// narrow connects to lb with a socket that takes little, until the test ends.
func narrow(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := (&net.Dialer{Control: narrowSocket, Timeout: patience}).Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// narrowSocket has this side's buffers small, and the other's, which the kernel makes for so many segments. A connection over
// loopback that stalls has else some four MiB in the kernel, and when a few hundred have taken what there is for TCP, it resets
// those of anybody on this machine.
func narrowSocket(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		for _, o := range [][3]int{
			{syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8 << 10}, {syscall.SOL_SOCKET, syscall.SO_SNDBUF, 8 << 10},
			{syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536},
		} {
			_ = syscall.SetsockoptInt(int(fd), o[0], o[1], o[2])
		}
	})
}

// tcpMemory is how many bytes the kernel may have in use for TCP; 0 where it does not tell.
func tcpMemory() uint64 {
	text, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_mem")
	fields := strings.Fields(string(text))
	if len(fields) != 3 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[2], 10, 32)
	return pages * uint64(os.Getpagesize())
}
