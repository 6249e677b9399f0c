package relay

// How connections end: half-close in both directions, and resets.

import (
	"net"
	"testing"
)

func TestHalfClose(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first func(c, s *net.TCPConn) (closes, stays *net.TCPConn)
	}{
		{"client first", func(c, s *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return c, s }},
		{"upstream first", func(c, s *net.TCPConn) (*net.TCPConn, *net.TCPConn) { return s, c }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := listen(t)
			r := start(t, settings(), u.addr)
			c := r.dial(t)
			closes, stays := tt.first(c, u.accept(t))
			send(t, closes, "last words")
			_ = closes.CloseWrite()
			expect(t, stays, "last words")
			expectEOF(t, stays)
			for range 3 { // the other direction goes on
				send(t, stays, "and yet it moves")
				expect(t, closes, "and yet it moves")
			}
			_ = stays.CloseWrite()
			expectEOF(t, closes)
			if got := r.result(t); got.Reason != Finished {
				t.Errorf("reason = %s, want finished", got.Reason)
			}
		})
	}
}

func TestReset(t *testing.T) {
	for _, tt := range []struct {
		name   string
		client bool // who resets
		want   Reason
	}{
		{"by the client", true, ClientReset},
		{"by the upstream", false, UpstreamReset},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := listen(t)
			r := start(t, settings(), u.addr)
			c := r.dial(t)
			s := u.accept(t)
			send(t, c, "request")
			expect(t, s, "request")
			send(t, s, "half an ans")
			expect(t, c, "half an ans")
			breaks, sees := s, c
			if tt.client {
				breaks, sees = c, s
			}
			reset(breaks)
			expectReset(t, sees)
			if got := r.result(t); got.Reason != tt.want {
				t.Errorf("reason = %s, want %s", got.Reason, tt.want)
			}
		})
	}
}

// A reset after the other direction was closed is no clean end either.
func TestResetAfterHalfClose(t *testing.T) {
	u := listen(t)
	r := start(t, settings(), u.addr)
	c := r.dial(t)
	s := u.accept(t)
	_ = c.CloseWrite()
	expectEOF(t, s)
	send(t, s, "part")
	expect(t, c, "part")
	reset(s)
	expectReset(t, c)
	if got := r.result(t); got.Reason != UpstreamReset {
		t.Errorf("reason = %s, want upstream_reset", got.Reason)
	}
}

// What the upstream answered before it broke still reaches the client, while the
// client goes on sending.
func TestAnswerBeforeReset(t *testing.T) {
	u := listen(t)
	r := start(t, settings(), u.addr)
	c := r.dial(t)
	s := u.accept(t)
	send(t, c, "request that is never read")
	send(t, s, "413 too large")
	_ = s.Close() // with unread bytes: the kernel sends a RST after the data
	expect(t, c, "413 too large")
	for {
		if _, err := c.Write(make([]byte, 1024)); err != nil {
			break // reset, or closed
		}
	}
	if got := r.result(t); got.Reason != UpstreamReset {
		t.Errorf("reason = %s, want upstream_reset", got.Reason)
	}
}
