//go:build linux

package balancer

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A device that the virtual IP has led to another load balancer says nothing to this one any more.
func TestVanishedClientsAreGivenUp(t *testing.T) {
	ln, err := new(Server).bind("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		if got := time.Duration(ms) * time.Millisecond; err != nil || got != vanishedAfter {
			t.Errorf("an accepted connection is given up after %v (%v), want %v", got, err, vanishedAfter)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
