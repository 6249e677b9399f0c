package gateway

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// Pings, pongs and fragments cost what frames cost: a device that floods the gateway with them gets few answers and is closed.
func TestPingFloodIsLimited(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first []byte // before the flood
		flood []byte
		pongs int // at most
	}{
		{"pings", nil, webSocketFrame(opPing, []byte("x")), 20},
		{"pongs", nil, webSocketFrame(opPong, []byte("x")), 0},
		{"fragments of nothing", fragment(opBinary, []byte{1}), fragment(opContinuation, nil), 0},
		{"fragments of a byte", fragment(opBinary, []byte{1, byte(wire.TypeHeartbeat), 0x3f, 0xff}), fragment(opContinuation, []byte("x")), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := testDoc()
			doc.DeviceLimit.Rate, doc.DeviceLimit.Burst, doc.DeviceLimit.OnLimit = 0.1, 5, dynamic.LimitReject
			w := newWorld(t, doc)
			s := w.gateway("gw-1", func(cfg *Config, times *timings) {
				cfg.TLS.Mode = tlsOff
				times.rejection = 300 * time.Millisecond
			})
			conn, in := webSocketByHand(t, s)
			hello := webSocketFrame(opBinary, frame(wire.TypeHello, `{"client_id":"`+clientID(1).String()+`"}`))
			if _, err := conn.Write(append(hello, tt.first...)); err != nil {
				t.Fatal(err)
			}
			flooded := make(chan struct{})
			go func() { // ends with the connection
				defer close(flooded)
				for err := error(nil); err == nil; {
					_, err = conn.Write(tt.flood)
					time.Sleep(time.Millisecond)
				}
			}()
			pongs, told := 0, false
			for {
				opcode, payload, err := readWebSocketFrame(in)
				if err != nil {
					break
				}
				if opcode == opPong {
					pongs++
				}
				if opcode == opBinary && payload[1] == byte(wire.TypeError) {
					var e wire.Error
					if err := wire.Unmarshal(payload[0], payload[wire.HeaderSize:], &e); err != nil || e.Code != wire.CodeRateLimited || !e.Close {
						t.Errorf("error = %+v, %v, want rate_limited that closes", &e, err)
					}
					told = true
				}
			}
			_ = conn.Close()
			<-flooded
			if !told || pongs > tt.pongs {
				t.Errorf("told = %v, pongs = %d, want the ERROR and at most %d", told, pongs, tt.pongs)
			}
			eventually(t, "it is counted", func() bool {
				return testutil.ToFloat64(s.metrics.closed.WithLabelValues(string(wire.CodeRateLimited))) == 1
			})
		})
	}
}

// A message in fragments takes a token for each: one that is over the limit is rejected as a whole, and nothing of it is lost.
func TestFragmentsAreCounted(t *testing.T) {
	doc := testDoc()
	doc.DeviceLimit.Rate, doc.DeviceLimit.Burst, doc.DeviceLimit.OnLimit = 0.001, 3, dynamic.LimitReject
	webBubble(t, doc, func(t *testing.T, r *rig) {
		d, end := r.connectWeb(t)
		d.hello(clientID(1), wire.Token{})
		beat, err := wire.Append(nil, wire.Version1, &wire.Heartbeat{Token: d.token})
		if err != nil {
			t.Fatal(err)
		}
		send := func() {
			for _, part := range [][]byte{fragment(opBinary, beat[:2]), fragment(opContinuation, beat[2:10]), webSocketFrame(opContinuation, beat[10:])} {
				if _, err := end.Conn.Write(part); err != nil {
					t.Fatal(err)
				}
			}
		}
		send()
		var ack wire.HeartbeatAck
		d.want(&ack) // with the last token
		send()
		if e := d.wantError(wire.CodeRateLimited); e.Close {
			t.Errorf("the ERROR closes: %v", e)
		}
		if n := testutil.ToFloat64(r.Server.metrics.deviceRejected); n != 3 {
			t.Errorf("rejected = %v, want the heartbeat and the two fragments before it", n)
		}
		d.quiet(time.Second)
	})
}

// Where devices over the limit wait, a flood of pings is read at the limit's rate, and a device that pings now and
// then is answered.
func TestPingsWait(t *testing.T) {
	doc := testDoc()
	doc.DeviceLimit.Rate, doc.DeviceLimit.Burst, doc.DeviceLimit.OnLimit = 1, 3, dynamic.LimitWait
	w := newWorld(t, doc)
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.TLS.Mode = tlsOff })
	conn, in := webSocketByHand(t, s)
	for range 50 {
		if _, err := conn.Write(webSocketFrame(opPing, []byte("x"))); err != nil {
			t.Fatal(err)
		}
	}
	opcode, payload, err := readWebSocketFrame(in)
	if err != nil || opcode != opPong || string(payload) != "x" {
		t.Fatalf("got %d %q, %v, want a pong", opcode, payload, err)
	}
	eventually(t, "the reader waits", func() bool { return testutil.ToFloat64(s.metrics.deviceWaited) >= 1 })
	if got := testutil.ToFloat64(s.metrics.deviceAllowed); got > 40 {
		t.Errorf("pings taken = %v, want about 3", got)
	}
}
