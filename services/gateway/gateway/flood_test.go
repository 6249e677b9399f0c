package gateway

// What a flood of one device costs the others: RELIABILITY row 9.

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/beside"
	"github.com/goshield/goshield/internal/dynamic"
	sdkbackend "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/wire"
)

const (
	floodRate = 100_000 // frames a second
	// sendEvery is how often the flooding device sends its share of them.
	sendEvery = time.Millisecond
	// askEvery is the pause of each of the other devices between two requests.
	askEvery = 5 * time.Millisecond
)

// TestFloodLeavesOthersAlone: the p99 of others is at most a fifth more while one device floods the gateway. Both share
// their few cores with the flooding device, which here is in the same process; so what it is compared to is the p99 while
// the very same flood goes to somebody who throws it away. What is left is the gateway's own.
func TestFloodLeavesOthersAlone(t *testing.T) {
	const rate, burst = 250, 50 // the others ask 200 times a second; the burst is what the flood is served first
	// Short: with the race detector a frame costs many times as much, on a machine that has other tests to run.
	promise, span := beside.Promise{Ratio: 1.2, Floor: 20 * time.Millisecond}, 500*time.Millisecond
	if long {
		promise.Floor, promise.Least, span = 100*time.Microsecond, 15, 2*time.Second // by so much medians differ from run to run
	}
	for _, tt := range []struct {
		name  string
		frame func(d *device, i uint32) wire.Message
	}{
		{"requests", func(d *device, i uint32) wire.Message {
			return &wire.Request{ID: i, Token: d.token, Service: "echo", Body: []byte(`1`)}
		}},
		{"heartbeats", func(d *device, _ uint32) wire.Message { return &wire.Heartbeat{Token: d.token} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := testDoc()
			doc.Heartbeat.Interval = 0 // the devices send none
			doc.DeviceLimit = dynamic.DeviceLimit{Bucket: dynamic.Bucket{Rate: rate, Burst: burst}, OnLimit: dynamic.LimitReject}
			w := newWorld(t, doc)
			var ofFlooder atomic.Int64
			w.handler = func(_ context.Context, req sdkbackend.Request) (sdkbackend.Response, error) {
				if req.ClientID == clientID(1) {
					ofFlooder.Add(1)
				}
				return sdkbackend.Response{Body: req.Body}, nil
			}
			s := w.gateway("gw-1", nil)
			w.settled(s)
			others := make([]*device, 4)
			for i := range others {
				others[i] = w.enrolled(s, clientID(byte(10+i)))
			}
			alone := p99(others, span)
			begun, flooded := time.Now(), time.Duration(0)
			var sent, thrownAway int64
			o := promise.Hold(t, func() time.Duration {
				f := w.flooder(w.sink(), tt.frame)
				defer func() { thrownAway += f.stop() }()
				return p99(others, span)
			}, func() time.Duration {
				f := w.flooder(s.Addr(), tt.frame) // on a connection of its own: one that only floods is closed after a while
				began := time.Now()
				defer func() {
					sent, flooded = sent+f.stop(), flooded+time.Since(began)
					eventually(t, "the flood is over", func() bool { return s.table.find(clientID(1)) == nil })
				}()
				return p99(others, span)
			})
			t.Attr("p99_beside_a_flood", o.String())
			t.Attr("p99_without_any_flood", alone.Round(time.Microsecond).String())
			perSecond := func(n int64) float64 { return float64(n) / flooded.Seconds() }
			t.Logf("frames a second: %.0f to the gateway, %.0f to the sink; %v were rejected", perSecond(sent), perSecond(thrownAway), testutil.ToFloat64(s.metrics.deviceRejected))
			if most := burst*float64(o.Windows) + rate*time.Since(begun).Seconds(); float64(ofFlooder.Load()) > most {
				t.Errorf("requests of the flood that reached the backend = %d, want at most %.0f: burst + rate × time", ofFlooder.Load(), most)
			}
			if rejected := testutil.ToFloat64(s.metrics.deviceRejected); rejected < 1000 {
				t.Errorf("%v frames were rejected of %d, want most: there was no flood", rejected, sent)
			}
		})
	}
}

// p99 is that of the devices' requests in a span of time. The devices ask at the same time, each with pauses.
func p99(devices []*device, span time.Duration) time.Duration {
	took := make([][]time.Duration, len(devices))
	var asking sync.WaitGroup
	for i, d := range devices {
		asking.Go(func() {
			tick := time.NewTicker(askEvery)
			defer tick.Stop()
			for begun := time.Now(); time.Since(begun) < span; <-tick.C {
				d.asked++
				began := time.Now()
				d.roundTrip(d.asked)
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	asking.Wait()
	var all []time.Duration
	for _, t := range took {
		all = append(all, t...)
	}
	if len(all) == 0 {
		devices[0].t.FailNow() // they have said why
	}
	return beside.Percentile(all, 99)
}

// flooder is a device that sends as many frames as floodRate says, or as are taken.
type flooder struct {
	conn *tls.Conn
	end  chan struct{}
	work sync.WaitGroup
	sent int64 // of the sender
}

// flooder connects device 1 to addr, a gateway's or a sink's, and begins its flood. The frames are made before: what it
// costs is what TLS and the system take.
func (w *world) flooder(addr string, frame func(d *device, i uint32) wire.Message) *flooder {
	w.t.Helper()
	d := w.welcomedAt(addr, clientID(1))
	const each = int(floodRate * sendEvery / time.Second)
	turns := make([][]byte, 50) // ids come again when those before have long been answered
	for i := range turns {
		for j := range each {
			var err error
			if turns[i], err = wire.Append(turns[i], wire.Version1, frame(d, uint32(i*each+j))); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	fl := &flooder{conn: d.conn.(*tls.Conn), end: make(chan struct{})}
	fl.work.Go(func() { fl.send(turns, int64(each)) })
	fl.work.Go(func() { _, _ = io.Copy(io.Discard, d.conn) }) // what it is told, until the connection ends
	return fl
}

// welcomedAt is a device that has been welcomed at addr, a gateway's or a sink's. Whoever asks for it reads what comes, and closes
// the connection.
func (w *world) welcomedAt(addr string, id wire.ClientID) *device {
	w.t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, w.clientTLS())
	if err != nil {
		w.t.Fatal(err)
	}
	d := &device{t: w.t, conn: conn, client: id, version: wire.Version1}
	d.send(&wire.Hello{ClientID: id})
	f, err := wire.NewReader(conn, wire.MaxPayload).Next()
	if err != nil || f.Type != wire.TypeWelcome || wire.Unmarshal(f.Version, f.Payload, &d.welcome) != nil {
		w.t.Fatalf("HELLO: %v, %v, want WELCOME", f, err)
	}
	d.token = d.welcome.Token
	return d
}

// send ends when stop is called, or the connection ends.
func (f *flooder) send(turns [][]byte, each int64) {
	for begun := time.Now(); ; {
		due := int64(time.Since(begun) / sendEvery)
		for f.sent/each < due {
			if _, err := f.conn.Write(turns[f.sent/each%int64(len(turns))]); err != nil {
				return
			}
			f.sent += each
		}
		select {
		case <-f.end:
			return
		case <-time.After(sendEvery):
		}
	}
}

// stop ends the flood, so that nobody reads what is left of it, and tells how many frames it had.
func (f *flooder) stop() int64 {
	close(f.end)
	_ = f.conn.NetConn().(*net.TCPConn).SetLinger(0)
	_ = f.conn.NetConn().Close()
	f.work.Wait()
	return f.sent
}

// sink is where a flood is thrown away: it says WELCOME to a device, and from then on takes its bytes from the socket
// without even decrypting them.
func (w *world) sink() (addr string) {
	w.t.Helper()
	ln := listenAt(w.t, "127.0.0.1:0")
	pair, err := tls.LoadX509KeyPair(w.path("cert.pem"), w.path("key.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	go func() { // ends with its one connection
		defer ln.Close()
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
		f, err := wire.NewReader(conn, wire.MaxPayload).Next()
		if err != nil || f.Type != wire.TypeHello {
			return
		}
		welcome, err := wire.Append(nil, wire.Version1, &wire.Welcome{Token: newToken(), ExpiresAt: time.Now().Add(time.Hour)})
		if err != nil {
			return
		}
		if _, err := conn.Write(welcome); err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, raw)
	}()
	return ln.Addr().String()
}
