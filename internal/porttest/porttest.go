// Package porttest keeps ports for tests that end a server and start it again at the
// address it had. Between the two the port is free, and the system gives it to whoever asks
// for any port next: another test, in this process or in another one.
package porttest

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"syscall"
	"testing"
)

// Held is an address of 127.0.0.1 whose port nobody else is given until the test ends. Whoever names it can listen
// there, again and again, as long as his socket has SO_REUSEADDR, which Go's listeners have; while nobody does,
// connections are refused. It may be called from any goroutine that may end the test.
func Held(t testing.TB) (addr string) {
	t.Helper()
	fd, port, err := bind()
	if err != nil {
		t.Fatalf("keep a port: %v", err)
	}
	if runtime.GOOS == "linux" {
		t.Cleanup(func() { _ = syscall.Close(fd) })
	} else {
		// Elsewhere a socket that is bound keeps everybody away: the port is free once more, with
		// the risk that this brings.
		_ = syscall.Close(fd)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// bind makes a socket that has a port and does not listen. Linux gives such a port to nobody who asks
// for any, and lets those who name it listen there (man 7 socket, SO_REUSEADDR).
func bind() (fd, port int, err error) {
	syscall.ForkLock.RLock() // so that no child inherits it
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, 0, err
	}
	if err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		var at syscall.Sockaddr
		if at, err = syscall.Getsockname(fd); err == nil {
			return fd, at.(*syscall.SockaddrInet4).Port, nil
		}
	}
	_ = syscall.Close(fd)
	return 0, 0, err
}

// Host is a loopback address of this machine that, most likely, nobody else uses, where the system has more than one: for tests
// that need the same port at several addresses, or one that is not 127.0.0.1.
func Host() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	return netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))}).String()
}
