package relay

import (
	"io"
	"net"
	"testing"
)

// A RST that a write has already reported reads like an ordinary end of
// stream: it must not be passed on as a FIN.
func TestWasReset(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(peer, own *net.TCPConn)
		want bool
	}{
		{"FIN", func(peer, _ *net.TCPConn) { _ = peer.CloseWrite() }, false},
		{"RST that a write met", func(peer, own *net.TCPConn) {
			reset(peer)
			for {
				if _, err := own.Write([]byte("x")); err != nil {
					return
				}
			}
		}, true},
	} {
		u := listen(t)
		own := (&rig{addr: u.addr}).dial(t)
		tt.end(u.accept(t), own)
		if _, err := own.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: read = %v, want the end of the stream", tt.name, err)
		}
		if got := wasReset(own); got != tt.want {
			t.Errorf("%s: wasReset = %t, want %t", tt.name, got, tt.want)
		}
	}
}
