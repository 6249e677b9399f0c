package gateway

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// Pings and pongs cost what frames cost: a device that floods the gateway with them gets few answers and is closed.
func TestPingFloodIsLimited(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opcode byte
		pongs  int // at most
	}{
		{"pings", opPing, 20},
		{"pongs", opPong, 0},
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
			if _, err := conn.Write(hello); err != nil {
				t.Fatal(err)
			}
			flooded := make(chan struct{})
			go func() { // ends with the connection
				defer close(flooded)
				for err := error(nil); err == nil; {
					_, err = conn.Write(webSocketFrame(tt.opcode, []byte("x")))
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
