package gateway

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// Where a system has nothing to park with, readers stay with their connections, and all else is as everywhere.

// rooted keeps the readers.
func rooted(_ *Config, times *timings) { times.park = 0 }

// eachRooted runs f with a gateway whose readers stay, and what enrols a device there. Part of a frame has so long to become whole.
func eachRooted(t *testing.T, doc dynamic.Document, frame time.Duration, f func(t *testing.T, s *Server, enrolled func(wire.ClientID) *device)) {
	t.Helper()
	for _, tt := range []struct {
		name string
		mode string
		dial func(*world, *Server) *device
	}{
		{"TLS", tlsOn, (*world).dial},
		{"plain", tlsOff, (*world).dial},
		{"WebSocket over TLS", tlsOn, (*world).dialWeb},
		{"WebSocket", tlsOff, (*world).dialWeb},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, doc)
			s := w.gateway("gw-1", func(cfg *Config, times *timings) {
				rooted(cfg, times)
				cfg.TLS.Mode = tt.mode
				cfg.Drain = Drain{Window: 0, Timeout: patience}
				times.frame = frame
			})
			if s.lot != nil {
				t.Fatal("there is a lot")
			}
			f(t, s, func(id wire.ClientID) *device {
				d := tt.dial(w, s)
				d.hello(id, wire.Token{})
				return d
			})
		})
	}
}

func wantNoSockets(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, "the connection is forgotten", func() bool {
		s.sockets.mu.Lock()
		defer s.sockets.mu.Unlock()
		return len(s.sockets.all) == 0
	})
}

func TestServedWithoutParking(t *testing.T) {
	eachRooted(t, testDoc(), patience, func(t *testing.T, s *Server, enrolled func(wire.ClientID) *device) {
		d := enrolled(clientID(1))
		eventually(t, "the backend is reached", func() bool {
			d.request(1, `1`)
			f, ok := d.next()
			return ok && f.Type == wire.TypeResponse
		})
		for i := range uint32(5) {
			d.roundTrip(2 + i)
			d.beat()
		}
		if o := s.pushLocal(d.client, "news", []byte(`1`), time.Minute, nil); o != pushQueued {
			t.Fatalf("push = %s, want queued", o)
		}
		var p wire.Push
		d.want(&p)
		d.send(&wire.PushAck{ID: p.ID})
		newer := enrolled(d.client)
		d.wantClosed(wire.CodeTakenOver)
		newer.send(&wire.Bye{})
		newer.wantEnd()
		wantNoSockets(t, s)
	})
}

func TestTimeoutsWithoutParking(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*dynamic.Document)
		after  []byte // WELCOME the device sends it
		want   wire.Code
	}{
		{"silence", func(d *dynamic.Document) { d.IdleTimeout, d.Heartbeat.Interval = dynamic.Duration(time.Second), 0 }, nil, wire.CodeIdleTimeout},
		{"no heartbeat", func(d *dynamic.Document) {
			d.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(time.Second), Missed: 1}
		}, nil, wire.CodeHeartbeatTimeout},
		{"part of a frame", func(*dynamic.Document) {}, []byte{1, byte(wire.TypeRequest), 0, 50, '{'}, wire.CodeIdleTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := testDoc()
			tt.change(&doc)
			eachRooted(t, doc, time.Second, func(t *testing.T, s *Server, enrolled func(wire.ClientID) *device) {
				d := enrolled(clientID(1))
				if web, ok := d.conn.(*webEnd); ok && tt.after != nil {
					message := webSocketFrame(opBinary, append(tt.after, make([]byte, 49)...))
					if _, err := web.Conn.Write(message[:len(message)-1]); err != nil {
						t.Fatal(err)
					}
				} else if tt.after != nil {
					d.write(tt.after)
				}
				d.wantClosed(tt.want)
				_ = d.conn.Close()
				wantNoSockets(t, s)
			})
		})
	}
}

func TestDrainWithoutParking(t *testing.T) {
	eachRooted(t, testDoc(), patience, func(t *testing.T, s *Server, enrolled func(wire.ClientID) *device) {
		d := enrolled(clientID(1))
		wantDrained(t, s, d)
	})
}

// Nobody parks the session, so it is before its reader begins that the buffers of the handshake are given up.
func TestHandshakeBuffersWithoutParking(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		cfg := r.secure(t)
		here, there := net.Pipe()
		shaken := make(chan error, 1)
		client := tls.Client(here, cfg)
		go func() { // ends with the handshake
			err := client.Handshake()
			if err == nil {
				_, err = client.Read(make([]byte, 1)) // what came behind it
			}
			shaken <- err
		}()
		sock := &socket{Conn: there, srv: r.Server}
		conn, err := r.handshakeTLS(sock)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		rawInput, _, hand := tlsLayout.buffers(conn)
		if rawInput.Cap() == 0 {
			t.Fatal("the handshake has left nothing: this tests little")
		}
		if spot := r.spotFor(newStream(conn, sock)); spot != nil {
			t.Errorf("something to park: %v, want none", spot)
		}
		if rawInput.Cap() != 0 || hand.Cap() != 0 {
			t.Errorf("buffers of %d and %d bytes are left, want none", rawInput.Cap(), hand.Cap())
		}
		_, _ = here.Close(), there.Close()
	})
}
