package gateway

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// wantAfter checks when something happened: never early, and at most two ticks
// of the timer wheel late.
func wantAfter(t *testing.T, what string, begun time.Time, want time.Duration) {
	t.Helper()
	if took := time.Since(begun); took < want || took > want+300*time.Millisecond {
		t.Errorf("%s after %v, want %v", what, took, want)
	}
}

// Where docs/PROTOCOL.md and docs/ARCHITECTURE.md name a time, it is this one.
func TestDefaultTimings(t *testing.T) {
	want := timings{
		proxyHeader: 5 * time.Second,
		handshake:   5 * time.Second,
		hello:       5 * time.Second,
		frame:       10 * time.Second,
		writeStall:  10 * time.Second,
		rejection:   10 * time.Second,
		lastWords:   3 * time.Second,
		linger:      time.Second,
		finish:      30 * time.Second,
		park:        500 * time.Millisecond,
		pushAck:     5 * time.Second,
		confirm:     time.Second,
		tick:        100 * time.Millisecond,
	}
	if got := defaultTimings(); got != want {
		t.Errorf("timings = %+v, want %+v", got, want)
	}
}

func TestSilenceAfterConnect(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		begun := time.Now()
		d := r.connect(t)
		d.wantClosed(wire.CodeAuthTimeout)
		wantAfter(t, "closed", begun, 5*time.Second)
	})
}

func TestHelloByteByByte(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		begun := time.Now()
		d := r.connect(t)
		for _, b := range frame(wire.TypeHello, `{"client_id":"012`)[:12] {
			d.write([]byte{b})
			time.Sleep(400 * time.Millisecond)
		}
		d.wantClosed(wire.CodeAuthTimeout)
		wantAfter(t, "closed", begun, 5*time.Second)
	})
}

// A slow auth-service takes the gateway's time, not the device's.
func TestHelloDeadlineDoesNotCountAuth(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		r.auth.delay = 20 * time.Second
		d := r.enrolled(t, clientID(1))
		r.auth.set(func() { r.auth.delay = 0 })
		d.roundTrip(1)
	})
}

func TestSilenceAfterWelcome(t *testing.T) {
	for _, tt := range []struct {
		name     string
		interval time.Duration
		missed   int
		idle     time.Duration
		want     time.Duration
		code     wire.Code
	}{
		{"heartbeats missed first", 20 * time.Second, 3, 90 * time.Second, 60 * time.Second, wire.CodeHeartbeatTimeout},
		{"idle first", 40 * time.Second, 3, 90 * time.Second, 90 * time.Second, wire.CodeIdleTimeout},
		{"heartbeats off", 0, 3, 90 * time.Second, 90 * time.Second, wire.CodeIdleTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := testDoc()
			doc.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(tt.interval), Missed: tt.missed}
			doc.IdleTimeout = dynamic.Duration(tt.idle)
			bubble(t, doc, func(t *testing.T, r *rig) {
				d := r.enrolled(t, clientID(1))
				begun := time.Now()
				d.wantClosed(tt.code)
				wantAfter(t, "closed", begun, tt.want)
			})
		})
	}
}

// Any frame resets the idle timeout, only HEARTBEAT the heartbeat deadline.
func TestWhatResetsWhichDeadline(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		begun := time.Now()
		for i := range 5 {
			time.Sleep(10 * time.Second)
			d.roundTrip(uint32(i))
		}
		d.wantClosed(wire.CodeHeartbeatTimeout)
		wantAfter(t, "closed for want of heartbeats", begun, 60*time.Second)

		d = r.enrolled(t, clientID(1))
		for range 20 {
			time.Sleep(50 * time.Second)
			d.beat()
		}
		begun = time.Now()
		d.wantClosed(wire.CodeHeartbeatTimeout)
		wantAfter(t, "closed after the last heartbeat", begun, 60*time.Second)
	})
}

// RELIABILITY row 4.
func TestFrameByteByByte(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		d.roundTrip(1)
		time.Sleep(7 * time.Second)
		begun := time.Now()
		for _, b := range frame(wire.TypeHeartbeat, `{"token":"`)[:9] {
			d.write([]byte{b})
			time.Sleep(time.Second)
		}
		d.wantClosed(wire.CodeIdleTimeout)
		wantAfter(t, "closed", begun, 10*time.Second)
		if got := r.closed(closedFrameTimeout); got != 1 {
			t.Errorf("closed_total{frame_timeout} = %v, want 1", got)
		}
	})
}

// A frame that takes its time, but less than the deadline, is a frame.
func TestSlowFramesAreServed(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		for range 5 {
			b, _ := wire.Append(nil, wire.Version1, &wire.Heartbeat{Token: d.token})
			for len(b) > 0 {
				n := min(len(b), 7)
				d.write(b[:n])
				b = b[n:]
				time.Sleep(time.Second)
			}
			var ack wire.HeartbeatAck
			d.want(&ack)
		}
	})
}

// RELIABILITY row 10: a device that does not read.
func TestDeviceThatDoesNotRead(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		stalled := r.stalled(t, clientID(2))
		begun := time.Now()
		writes := make(chan int)
		go func() { // until the gateway closes
			n := 0
			for i := uint32(0); ; i++ {
				b, _ := wire.Append(nil, wire.Version1, &wire.Request{ID: i, Token: stalled.token, Service: "echo", Body: make4k()})
				if _, err := stalled.conn.Write(b); err != nil {
					writes <- n
					return
				}
				n++
			}
		}()
		synctest.Wait()
		d.roundTrip(1) // nobody else notices
		n := <-writes
		wantAfter(t, "closed", begun, 10*time.Second)
		if limit := outboundLimit/4096 + 34; n > limit {
			t.Errorf("the gateway took %d requests of 4 KiB from a device that does not read, want at most %d", n, limit)
		}
		if got := r.closed(closedWriteStalled); got != 1 {
			t.Errorf("closed_total{write_stalled} = %v, want 1", got)
		}
	})
}

// One small answer that is not taken is enough: the queue is nowhere near full.
func TestDeviceThatDoesNotTakeOneAnswer(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.stalled(t, clientID(1))
		time.Sleep(3 * time.Second)
		d.request(1, `1`)
		r.wantWriteStall(t, clientID(1))
	})
}

// A device that takes every piece in time, but so slowly that its queue stays full, goes as well.
func TestDeviceThatTrickles(t *testing.T) {
	doc := testDoc()
	const n = 32 // answers of 4 KiB: twice outboundLimit
	doc.MaxInFlight = n + 1
	bubble(t, doc, func(t *testing.T, r *rig) {
		r.router.holding(true)
		d := r.stalled(t, clientID(1))
		for i := range uint32(n) {
			d.request(i, string(make4k()))
		}
		synctest.Wait()
		if got := r.router.answerAll(); got != n {
			t.Fatalf("requests in flight = %d, want %d", got, n)
		}
		var trickle sync.WaitGroup
		defer trickle.Wait()
		defer d.conn.Close()
		trickle.Go(func() { // a piece of 16 KiB takes it 4 s; until the connection ends
			for buf := make([]byte, 4096); ; time.Sleep(time.Second) {
				if _, err := io.ReadFull(d.conn, buf); err != nil {
					return
				}
			}
		})
		r.wantWriteStall(t, clientID(1))
	})
}

// One that reads slowly, but takes every piece in time and leaves its queue room, stays: what counts is a
// piece, not all that was waiting.
func TestDeviceThatReadsSlowly(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.stalled(t, clientID(1))
		const n = 12
		for range n { // 48 KiB
			if o := r.pushLocal(clientID(1), "news", make4k(), time.Minute, nil); o != pushQueued {
				t.Fatalf("push = %s, want queued", o)
			}
		}
		frames := wire.NewReader(d.conn, wire.MaxPayload)
		for range n { // a piece takes it 6 s, all of it 24 s
			if _, err := frames.Next(); err != nil {
				t.Fatalf("connection ended: %v, want it to stay", err)
			}
			time.Sleep(2 * time.Second)
		}
		if got := r.closed(closedWriteStalled); got != 0 {
			t.Errorf("closed_total{write_stalled} = %v, want 0", got)
		}
	})
}

// wantWriteStall wants that session, which no longer takes what it should, to be closed for it 10 s from
// now and not before.
func (r *rig) wantWriteStall(t *testing.T, id wire.ClientID) {
	t.Helper()
	time.Sleep(10*time.Second - time.Millisecond)
	if got := r.closed(closedWriteStalled); got != 0 || r.table.find(id) == nil {
		t.Error("closed within 10 s, want the device to have them")
	}
	time.Sleep(300 * time.Millisecond)
	if got := r.closed(closedWriteStalled); got != 1 || r.table.find(id) != nil {
		t.Errorf("closed_total{write_stalled} after 10 s = %v, want 1 and the session gone", got)
	}
}

func make4k() []byte {
	b := make([]byte, 4096)
	for i := range b {
		b[i] = 'x'
	}
	b[0], b[4095] = '"', '"'
	return b
}

// RELIABILITY row 45.
func TestTokenExpiresOnLiveConnection(t *testing.T) {
	doc := testDoc()
	doc.Token.TTL = dynamic.Duration(100 * time.Second)
	bubble(t, doc, func(t *testing.T, r *rig) {
		r.auth.noRotation = true
		d := r.enrolled(t, clientID(1))
		begun := time.Now()
		for range 9 {
			time.Sleep(10 * time.Second)
			d.beat()
		}
		d.wantClosed(wire.CodeTokenExpired)
		wantAfter(t, "closed", begun, 100*time.Second)
	})
}

// In the last tenth of its life a token is always rotated, so that a device with heartbeats never expires.
func TestRotationKeepsConnectionAlive(t *testing.T) {
	doc := testDoc()
	doc.Token.TTL = dynamic.Duration(300 * time.Second)
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		rotations := 0
		for range 100 {
			time.Sleep(20 * time.Second)
			if ack := d.beat(); !ack.Token.IsZero() {
				d.token = ack.Token
				rotations++
			}
		}
		if rotations < 6 || rotations > 8 {
			t.Errorf("rotations in 2000 s at a ttl of 300 s = %d, want 6 to 8", rotations)
		}
	})
}
