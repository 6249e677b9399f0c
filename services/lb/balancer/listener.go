package balancer

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/internal/handover"
	"github.com/goshield/goshield/services/lb/relay"
)

// listener is one socket that clients connect to: the director of its connections. What it is
// called, and where they go, is its front's, which may be replaced while it listens.
type listener struct {
	// Static after construction.
	address string // as configured
	bound   net.Addr
	fd      int // a copy of the socket's descriptor, for a successor; -1: none
	closed  sync.Once

	front atomic.Pointer[front]
}

// Admit implements relay.Director.
func (l *listener) Admit(client netip.AddrPort) relay.Placement { return l.front.Load().admit(client) }

// newListener keeps a copy of a socket's descriptor. Where the system has no such thing there is none.
func newListener(address string, ln *net.TCPListener) *listener {
	fd, err := handover.Descriptor(ln)
	if err != nil {
		fd = -1
	}
	return &listener{address: address, bound: ln.Addr(), fd: fd}
}

// closeCopy closes the copy, once.
func (l *listener) closeCopy() {
	l.closed.Do(func() {
		if l.fd >= 0 {
			handover.CloseDescriptor(l.fd)
		}
	})
}

// vanishedAfter is how long a client may leave unacknowledged, or not take, what is sent to it. After a failover of a virtual IP, the balancer
// that had it holds connections whose devices are elsewhere by now: their gateways have closed them, and nobody
// answers. They must not count as load until the idle timeout, nor fill max_connections when the address comes
// back. It is what gateways by default wait for heartbeats, so that a device whose network is away for a while is theirs to judge.
const vanishedAfter = time.Minute

// bind listens on an address, at the socket that a predecessor left if there is one.
func (s *Server) bind(address string) (*net.TCPListener, error) {
	if ln := s.inherited.Listener(address); ln != nil {
		return ln, nil
	}
	// Keep-alive probes would wake sleeping devices; the idle timeout ends dead
	// connections.
	lc := net.ListenConfig{KeepAlive: -1, Control: giveUpAfter(vanishedAfter)}
	ln, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}
