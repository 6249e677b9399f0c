package gateway

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/sdk/wire"
)

// What only WebSocket has: parked sessions whose bytes come as messages, control frames and parts of either, in records of TLS.

// heldWeb is a device by WebSocket over TLS whose bytes the test sends.
func (w *world) heldWeb(s *Server, version uint16) (*device, *webEnd, *heldConn) {
	w.t.Helper()
	held := &heldConn{Conn: dialRaw(w.t, s.WebSocketAddr())}
	cfg := w.clientTLS()
	cfg.MaxVersion = version
	end := newWebEnd(w.t, tls.Client(held, cfg))
	held.holdBack()
	return newDevice(w.t, end), end, held
}

// What has arrived, in whatever pieces, is never left in TLS, in a buffer or in the library while the session sleeps, and the
// session sleeps with no part of a frame in its hands.
func TestParkingStrandsNothingOnWebSocket(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", restless)
	w.settled(s)
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			d, end, held := w.heldWeb(s, version)
			d.t = t
			d.client = clientID(7)
			d.send(&wire.Hello{ClientID: d.client})
			held.release(t, 0)
			d.want(&d.welcome)
			d.token = d.welcome.Token
			request := func(id uint32) []byte {
				t.Helper()
				b, err := wire.Append(nil, wire.Version1, &wire.Request{ID: id, Token: d.token, Service: "echo", Body: []byte(`1`)})
				if err != nil {
					t.Fatal(err)
				}
				return webSocketFrame(opBinary, b)
			}
			sent := func(parts ...[]byte) { // in one record
				t.Helper()
				var b []byte
				for _, part := range parts {
					b = append(b, part...)
				}
				if _, err := end.Conn.Write(b); err != nil {
					t.Fatal(err)
				}
				held.release(t, 0)
			}
			want := func(n int) {
				t.Helper()
				for range n {
					var resp wire.Response
					d.want(&resp)
				}
			}
			ping := func(payload string) []byte { return webSocketFrame(opPing, []byte(payload)) }

			wantParked(t, s, 1)
			sent(ping("alone"))
			end.wantPong(t, "alone")
			wantParked(t, s, 1)
			sent(ping("a"), ping("b"), request(1), ping("c"), request(2), ping("d"))
			want(2)
			for _, p := range []string{"a", "b", "c", "d"} {
				end.wantPong(t, p)
			}

			wantParked(t, s, 1)
			if _, err := end.Conn.Write(append(ping("in pieces"), request(3)...)); err != nil {
				t.Fatal(err)
			}
			for held.pending() > 1 { // one record in pieces: nothing of WebSocket has come
				held.release(t, (held.pending()+1)/2)
				wantReader(t, s)
			}
			held.release(t, 0)
			end.wantPong(t, "in pieces")
			want(1)

			// Cut anywhere, a frame's reader stays, and the rest finds it.
			whole := append(ping("cut"), request(4)...)
			for cut := 1; cut < len(whole); cut += 1 + cut/8 {
				wantParked(t, s, 1)
				before := testutil.ToFloat64(s.metrics.parked)
				sent(whole[:cut])
				if cut != len(ping("cut")) {
					eventually(t, "there is a reader", func() bool { return testutil.ToFloat64(s.metrics.parked) == before-1 })
				}
				sent(whole[cut:])
				end.wantPong(t, "cut")
				want(1)
			}

			// A reader that is asked to leave inside a frame, and then finds its rest and another record, takes that as well.
			wantParked(t, s, 1)
			sent(whole[:len(whole)-3])
			end.wantPong(t, "cut")
			ses := s.table.find(d.client)
			eventually(t, "the reader is asked to leave", func() bool {
				ses.mu.Lock()
				defer ses.mu.Unlock()
				return ses.interrupted
			})
			time.Sleep(20 * time.Millisecond) // it has looked
			for _, part := range [][]byte{whole[len(whole)-3:], request(5)} {
				if _, err := end.Conn.Write(part); err != nil {
					t.Fatal(err)
				}
			}
			held.release(t, 0)
			want(2)

			// A message in fragments, of which each is a record, a ping in between.
			frame := request(6)
			first, last := webSocketFrame(opBinary, frame[6:20]), webSocketFrame(opContinuation, frame[20:])
			first[0] &^= finalFrame
			wantParked(t, s, 1)
			sent(first)
			sent(ping("between"))
			end.wantPong(t, "between")
			if n := testutil.ToFloat64(s.metrics.parked); n != 0 {
				t.Errorf("parked inside a message = %v, want 0", n)
			}
			sent(last)
			want(1)

			wantParked(t, s, 1)
			end.closes.Store(true)
			sent(request(7), webSocketFrame(opClose, []byte{3, 232})) // an answer may be lost, the end not
			for {
				if _, ok := d.next(); !ok {
					break
				}
			}
			wantParked(t, s, 0)
			wantNoSockets(t, s)
		})
	}
}
