//go:build linux

package eventloop

import (
	"net"
	"testing"
)

// One of two listeners is closed, several times over: its connections and the other listener go on, and
// a loop remembers no listeners that are gone.
func TestStopServing(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", echo)
	r := startOn(t, Options{Loops: 2}, "127.0.0.1:0", up)
	other := &director{upstreams: r.upstreams, changed: make(chan struct{})}
	for range 3 {
		ln := listenTCP(t, "127.0.0.1:0")
		addr := ln.Addr().String()
		if err := r.Serve(ln, other); err != nil {
			t.Fatal(err)
		}
		c := dialTo(t, addr)
		exchange(t, c, []byte("x"))
		r.StopServing(other)
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			t.Error("a new connection was accepted after StopServing")
		}
		exchange(t, c, []byte("still here"))
		exchange(t, dialRig(t, r), []byte("y"))
		_ = c.Close()
	}
	for i, l := range r.loops {
		if n := ask(l, func() int { return len(l.accepting.listeners) }); n != 2 {
			t.Errorf("loop %d has room for %d listeners, want 2", i, n)
		}
	}
	r.StopServing(other) // of nothing
}
