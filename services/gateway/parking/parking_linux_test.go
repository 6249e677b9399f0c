package parking

import (
	"net"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type waker chan struct{}

func (w waker) Wake() { w <- struct{}{} }

func newLot(t *testing.T) *Lot {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run()
	t.Cleanup(l.Close)
	return l
}

// pair is a TCP connection's two ends.
func pair(t *testing.T) (here, there net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if there, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if here, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	return here, there
}

func (w waker) want(t *testing.T, what string) {
	t.Helper()
	select {
	case <-w:
	case <-time.After(30 * time.Second):
		t.Fatalf("not woken: %s", what)
	}
}

func (w waker) wantNone(t *testing.T, what string) {
	t.Helper()
	select {
	case <-w:
		t.Fatalf("woken: %s", what)
	default:
	}
}

func TestWakes(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after func(t *testing.T, there net.Conn)
	}{
		{"bytes that come later", nil, func(_ *testing.T, c net.Conn) { _, _ = c.Write([]byte("x")) }},
		{"bytes that were there", func(_ *testing.T, c net.Conn) { _, _ = c.Write([]byte("x")) }, nil},
		{"an end that comes later", nil, func(_ *testing.T, c net.Conn) { _ = c.Close() }},
		{"an end that was there", func(_ *testing.T, c net.Conn) { _ = c.Close() }, nil},
		{"a reset", nil, func(_ *testing.T, c net.Conn) { _, _ = c.(*net.TCPConn).SetLinger(0), c.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLot(t)
			here, there := pair(t)
			space, w := NewSpace(here), make(waker, 2)
			if tt.before != nil {
				tt.before(t, there)
			}
			if !l.Park(space, w) {
				t.Fatal("Park = false, want true")
			}
			if tt.after != nil {
				tt.after(t, there)
			}
			w.want(t, tt.name)
		})
	}
}

// One Park, one Wake: whatever else comes.
func TestWakesOnce(t *testing.T) {
	l := newLot(t)
	here, there := pair(t)
	space, w := NewSpace(here), make(waker, 100)
	for round := range 3 {
		if !l.Park(space, w) {
			t.Fatalf("Park %d = false, want true", round)
		}
		for range 10 {
			_, _ = there.Write([]byte("x"))
		}
		w.want(t, "bytes")
	}
	another, other := pair(t)
	next := make(waker, 1)
	if !l.Park(NewSpace(another), next) {
		t.Fatal("Park = false, want true")
	}
	_, _ = other.Write([]byte("x"))
	next.want(t, "the other connection") // whatever the first had to say is said by now
	w.wantNone(t, "without Park")
}

func TestLeave(t *testing.T) {
	l := newLot(t)
	here, there := pair(t)
	space, w := NewSpace(here), make(waker, 1)
	if !l.Park(space, w) {
		t.Fatal("Park = false, want true")
	}
	l.Leave(space)
	l.Leave(space) // again: nothing
	another, other := pair(t)
	next := make(waker, 1)
	if !l.Park(NewSpace(another), next) {
		t.Fatal("Park = false, want true")
	}
	if n := len(l.slots); n != 1 {
		t.Errorf("slots = %d, want 1: a place that was left is given away", n)
	}
	_, _ = there.Write([]byte("x")) // an event of the place's former owner
	_, _ = other.Write([]byte("x"))
	next.want(t, "the place's new owner")
	w.wantNone(t, "after Leave")
}

func TestCannotBeParked(t *testing.T) {
	pipe, end := net.Pipe()
	defer pipe.Close()
	defer end.Close()
	if NewSpace(pipe) != nil {
		t.Error("NewSpace of a pipe = a space, want nil")
	}
	l := newLot(t)
	here, _ := pair(t)
	space := NewSpace(here)
	_ = here.Close()
	if l.Park(space, make(waker)) {
		t.Error("Park of a closed connection = true, want false")
	}
	if n := len(l.free); n != 1 {
		t.Errorf("free places = %d, want 1", n)
	}
}
