package relay

import (
	"net"
	"testing"
)

// One of two listeners is closed: its connections and the other listener go on.
func TestStopServing(t *testing.T) {
	u := listen(t).echo(t)
	r := start(t, settings(), u.addr)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := &director{upstreams: r.director.upstreams, results: make(chan Result, 1)}
	if err := r.Serve(ln.(*net.TCPListener), other); err != nil {
		t.Fatal(err)
	}
	c := (&rig{addr: ln.Addr().String()}).dial(t)
	send(t, c, "x")
	expect(t, c, "x")
	r.StopServing(other)
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("a connection was accepted after StopServing")
	}
	send(t, c, "still here")
	expect(t, c, "still here")
	d := r.dial(t)
	send(t, d, "y")
	expect(t, d, "y")
	r.StopServing(other) // of nothing
}
