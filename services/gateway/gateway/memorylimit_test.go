package gateway

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// RELIABILITY row 16, with a limit in force: devices that each hold as much memory as a device can, a frame that does not become
// complete. As many as fit are let in; of as many again most are refused, those that are there are served, and no container
// would kill the gateway for what is in use. When they have gone, new ones are let in.
func TestTwiceWhatFitsIntoMemory(t *testing.T) {
	limit := uint64(64 << 20)
	if long {
		limit = 256 << 20
	}
	doc := testDoc()
	doc.Heartbeat.Interval, doc.IdleTimeout = 0, dynamic.Duration(5*patience)
	doc.Frame.MaxBytes = wire.MaxPayload
	w := newWorld(t, doc)
	c := w.child(t, fmt.Sprintf("GOMEMLIMIT=%d", limit))
	live := w.enrolledAt(c.addr, clientID(1))
	live.served()

	const most = 8000 // more than fit
	fit := w.hoard(c.addr, 0, most, true)
	if len(fit.conns) == 0 || fit.refused == 0 {
		t.Fatalf("%d devices let in and %d refused, want some of each", len(fit.conns), fit.refused)
	}
	live.roundTrip(2)
	more := w.hoard(c.addr, most, len(fit.conns), false)
	t.Logf("%d devices fitted into %d MiB; of as many again %d were let in", len(fit.conns), limit>>20, len(more.conns))
	if let := len(more.conns); let*5 > len(fit.conns) {
		t.Errorf("%d devices let in over the %d that fitted, want a fifth of them at most", let, len(fit.conns))
	}
	live.roundTrip(3)
	// A limit of a container's is a quarter higher (deploy/kubernetes); beyond that it is killed.
	peak := c.report().PeakMemory
	t.Logf("%d MiB in use at most", peak>>20)
	if peak > limit*5/4 {
		t.Errorf("%d KiB in use at most, want %d", peak>>10, limit*5/4>>10)
	}
	for _, conn := range append(fit.conns, more.conns...) {
		_ = conn.Close()
	}
	eventually(t, "new devices are let in again", func() bool {
		conn, err := w.hoarder(c.addr, 2*most)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	live.roundTrip(4)
}

// hoarders are devices that wait to send the rest of a frame.
type hoarders struct {
	mu      sync.Mutex
	conns   []net.Conn
	refused int64
}

// hoard has up to n devices connect, a few at a time, from that number on; with untilRefused, until one is refused.
func (w *world) hoard(addr string, first, n int, untilRefused bool) *hoarders {
	w.t.Helper()
	h := &hoarders{}
	var next, refused atomic.Int64
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for i := next.Add(1); i <= int64(n) && !(untilRefused && refused.Load() > 0); i = next.Add(1) {
				conn, err := w.hoarder(addr, first+int(i))
				switch {
				case err == nil:
					h.mu.Lock()
					h.conns = append(h.conns, conn)
					h.mu.Unlock()
				case errors.Is(err, errRefused):
					refused.Add(1)
				default:
					w.t.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
	h.refused = refused.Load()
	w.t.Cleanup(func() {
		for _, conn := range h.conns {
			_ = conn.Close()
		}
	})
	return h
}

// errRefused: the gateway told the device that there is no room.
var errRefused = errors.New("refused")

// hoarder connects a device, which sends all but the end of a frame that is as long as one may be.
func (w *world) hoarder(addr string, number int) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	secure := tls.Client(conn, w.clientTLS())
	if err := w.startHoarding(secure, number); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

func (w *world) startHoarding(conn *tls.Conn, number int) error {
	var id wire.ClientID
	id[0] = 0xad
	binary.BigEndian.PutUint32(id[4:], uint32(number))
	hello, err := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: id})
	if err != nil {
		return err
	}
	if _, err := conn.Write(hello); err != nil {
		return err
	}
	f, err := wire.NewReader(conn, wire.MaxPayload).Next()
	if err != nil {
		return err
	}
	var e wire.Error
	if f.Type == wire.TypeError && wire.Unmarshal(f.Version, f.Payload, &e) == nil && e.Code == wire.CodeOverloaded {
		return errRefused
	}
	if f.Type != wire.TypeWelcome {
		return fmt.Errorf("got %s %s, want WELCOME, or to be told that there is no room", f.Type, f.Payload)
	}
	part := make([]byte, wire.HeaderSize+wire.MaxPayload-1)
	part[0], part[1] = wire.Version1, byte(wire.TypeRequest)
	binary.BigEndian.PutUint16(part[2:], wire.MaxPayload)
	_, err = conn.Write(part)
	return err
}
