package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

// Parked sessions, over real sockets: nothing is lost on the way into the lot and out of it, and everybody else finds
// the session as if it had a reader.

// restless makes sessions park as soon as the timer wheel looks at them.
func restless(_ *Config, times *timings) { times.park = 1 }

// plain is restless without TLS.
func plain(cfg *Config, times *timings) {
	cfg.TLS.Mode = tlsOff
	restless(cfg, times)
}

var parkingListeners = []struct {
	name   string
	change func(*Config, *timings)
	dial   func(*world, *Server) *device
}{
	{"TLS", restless, (*world).dial},
	{"plain", plain, (*world).dial},
	{"WebSocket over TLS", restless, (*world).dialWeb},
	{"WebSocket", plain, (*world).dialWeb},
}

// eachParkingListener runs f with a gateway of which sessions park at once, and what enrols a device there.
func eachParkingListener(t *testing.T, doc dynamic.Document, f func(t *testing.T, w *world, s *Server, enrolled func(wire.ClientID) *device)) {
	t.Helper()
	for _, tt := range parkingListeners {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, doc)
			s := w.gateway("gw-1", tt.change)
			w.settled(s)
			f(t, w, s, func(id wire.ClientID) *device {
				d := tt.dial(w, s)
				d.hello(id, wire.Token{})
				return d
			})
		})
	}
}

// wantParked waits until that many sessions are parked, and no more have a reader.
func wantParked(t *testing.T, s *Server, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d sessions are parked", n), func() bool {
		return testutil.ToFloat64(s.metrics.parked) == float64(n) && testutil.ToFloat64(s.metrics.active) == 0
	})
}

func TestParkedDeviceIsServed(t *testing.T) {
	eachParkingListener(t, testDoc(), func(t *testing.T, _ *world, s *Server, enrolled func(wire.ClientID) *device) {
		d := enrolled(clientID(1))
		for i := range uint32(5) {
			wantParked(t, s, 1)
			d.roundTrip(2 * i)
			d.roundTrip(2*i + 1)
			wantParked(t, s, 1)
			d.beat()
		}
	})
}

func TestActiveDeviceIsNotParked(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", func(_ *Config, times *timings) { times.park = time.Hour })
	w.settled(s)
	d := w.enrolled(s, clientID(1))
	ses := s.table.find(clientID(1))
	for i := range uint32(5) {
		ses.mu.Lock()
		ses.askToPark() // in vain: there was traffic within the hour
		ses.mu.Unlock()
		d.roundTrip(i)
	}
	if n := testutil.ToFloat64(s.metrics.parked); n != 0 {
		t.Errorf("parked = %v, want 0", n)
	}
}

// A time in which the gateway does not read, and so parks nobody, is followed by another look.
func TestDeviceThatHadToWaitIsParked(t *testing.T) {
	doc := testDoc()
	doc.Heartbeat.Interval, doc.IdleTimeout = 0, dynamic.Duration(time.Hour) // no other deadline comes
	doc.DeviceLimit.Rate, doc.DeviceLimit.Burst, doc.DeviceLimit.OnLimit = 1, 1, dynamic.LimitWait
	w := newWorld(t, doc)
	s := w.gateway("gw-1", func(_ *Config, times *timings) { times.park, times.writeStall = 1, time.Hour })
	d := w.enrolled(s, clientID(1))
	d.beat()
	d.beat()
	wantParked(t, s, 1)
}

// What has arrived, in whatever pieces, is never left in crypto/tls while the session sleeps.
func TestParkingStrandsNothing(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", restless)
	w.settled(s)
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			d, held := w.heldDevice(s, version)
			d.t = t
			d.client = clientID(7)
			d.send(&wire.Hello{ClientID: d.client})
			held.release(t, 0) // in one piece with the end of the handshake
			d.want(&d.welcome)
			d.token = d.welcome.Token
			want := func(ids ...uint32) {
				t.Helper()
				got := map[uint32]bool{}
				for range ids {
					var resp wire.Response
					d.want(&resp)
					got[resp.ID] = true
				}
				for _, id := range ids {
					if !got[id] {
						t.Errorf("answers = %v, want %v", got, ids)
					}
				}
			}

			wantParked(t, s, 1)
			d.request(1, `1`)
			d.request(2, `2`)
			held.release(t, 0) // two records at once
			want(1, 2)

			wantParked(t, s, 1)
			d.request(3, `3`)
			for held.pending() > 1 { // one record in pieces, for which there is a reader
				held.release(t, (held.pending()+1)/2)
				wantReader(t, s)
			}
			held.release(t, 0)
			want(3)

			frame, err := wire.Append(nil, wire.Version1, &wire.Request{ID: 4, Token: d.token, Service: "echo", Body: []byte(`4`)})
			if err != nil {
				t.Fatal(err)
			}
			both, _ := wire.Append(frame, wire.Version1, &wire.Request{ID: 5, Token: d.token, Service: "echo", Body: []byte(`5`)})
			wantParked(t, s, 1)
			d.write(both[:len(frame)+9])
			held.release(t, 0) // a record with a frame and a bit of the next one
			want(4)
			d.write(both[len(frame)+9:])
			held.release(t, 0)
			want(5)
			wantParked(t, s, 1)
			d.send(&wire.Bye{})
			held.release(t, 0)
			d.wantEnd()
		})
	}
}

// wantReader waits until the one session has a reader that was asked to leave and stayed.
func wantReader(t *testing.T, s *Server) {
	t.Helper()
	ses := s.table.find(clientID(7))
	var came int64 // when it had stayed last
	eventually(t, "there is a reader, and it stays", func() bool {
		ses.mu.Lock()
		defer ses.mu.Unlock()
		if ses.parked {
			return false
		}
		if came == 0 {
			came = ses.readerCame
		}
		return ses.readerCame > came
	})
}

// The reader of a session that sleeps waits for the rest of a record as for that of a frame: it keeps a buffer of crypto/tls's, which is as
// large as the record's header says. The deadline does not begin anew with each look whether the reader may leave.
func TestPartOfARecordIsNotParked(t *testing.T) {
	for name, hold := range map[string]func(w *world, s *Server) (*device, *heldConn){
		"TLS": func(w *world, s *Server) (*device, *heldConn) { return w.heldDevice(s, tls.VersionTLS13) },
		"WebSocket over TLS": func(w *world, s *Server) (*device, *heldConn) {
			d, _, held := w.heldWeb(s, tls.VersionTLS13)
			return d, held
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, testDoc())
			s := w.gateway("gw-1", func(cfg *Config, times *timings) {
				restless(cfg, times)
				times.frame = time.Second
			})
			d, held := hold(w, s)
			d.send(&wire.Hello{ClientID: clientID(7)})
			held.release(t, 0)
			d.want(&d.welcome)
			wantParked(t, s, 1)
			held.put([]byte{23, 3, 3, 0x41, 0, 1}) // application data, 16 640 bytes
			held.release(t, 0)
			d.wantClosed(wire.CodeIdleTimeout)
			eventually(t, "it is counted", func() bool { return testutil.ToFloat64(s.metrics.closed.WithLabelValues(closedFrameTimeout)) == 1 })
		})
	}
}

// Part of a frame is waited for by a reader, and under the frame's deadline.
func TestPartOfAFrameIsNotParked(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", func(cfg *Config, times *timings) {
		plain(cfg, times)
		times.frame = time.Second
	})
	d := w.enrolled(s, clientID(1))
	wantParked(t, s, 1)
	d.write([]byte{1, byte(wire.TypeRequest), 0, 50, '{'})
	d.wantClosed(wire.CodeIdleTimeout)
	eventually(t, "it is counted", func() bool { return testutil.ToFloat64(s.metrics.closed.WithLabelValues(closedFrameTimeout)) == 1 })
}

// askedConn is a connection whose reader is asked to leave in the moment in which it has read what it waited for.
type askedConn struct {
	*net.TCPConn
	ask           chan *session // who is asked after the next Read
	ended, closed atomic.Bool
	early         atomic.Bool // it was closed before its end was read
}

func (c *askedConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if errors.Is(err, io.EOF) {
		c.ended.Store(true)
	}
	select {
	case ses := <-c.ask:
		ses.mu.Lock()
		ses.askToPark()
		ses.mu.Unlock()
	default:
	}
	return n, err
}

func (c *askedConn) Close() error {
	c.early.Store(!c.ended.Load())
	c.closed.Store(true)
	return c.TCPConn.Close()
}

// Whether the frame that was read is refused, the timer wheel cannot know. What the device still sends is read to its end all the same:
// a reset would overtake the ERROR.
func TestReaderThatWasAskedToLeaveLingers(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", func(cfg *Config, times *timings) {
		cfg.TLS.Mode = tlsOff
		times.park, times.lastWords, times.linger = time.Hour, patience, patience
	})
	ln := listenAt(t, "127.0.0.1:0")
	defer ln.Close()
	d := newDevice(t, dialRaw(t, ln.Addr().String()))
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn := &askedConn{TCPConn: accepted.(*net.TCPConn), ask: make(chan *session, 1)}
	s.accepted(conn, deviceKind)
	d.hello(clientID(1), wire.Token{})
	conn.ask <- s.table.find(d.client)
	d.write([]byte{1, byte(wire.TypeRequest), 0xff, 0xff})
	d.wantClosed(wire.CodeFrameTooLarge)
	if err := d.conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is closed", conn.closed.Load)
	if conn.early.Load() {
		t.Error("closed before the device had closed its side")
	}
}

func TestEndsOfParkedSessions(t *testing.T) {
	eachParkingListener(t, testDoc(), func(t *testing.T, _ *world, s *Server, enrolled func(wire.ClientID) *device) {
		for _, tt := range []struct {
			name string
			end  func(t *testing.T, d *device)
		}{
			{"kicked", func(t *testing.T, d *device) {
				if status, _ := api(t, s, http.MethodDelete, deviceOf(d.client, "/session"), ""); status != http.StatusNoContent {
					t.Fatalf("kick: %d, want 204", status)
				}
				d.wantClosed(wire.CodeKicked)
			}},
			{"revoked", func(_ *testing.T, d *device) {
				s.revoked(registry.Revocation{ClientID: d.client, Code: wire.CodeRevoked, Announced: true})
				d.wantClosed(wire.CodeRevoked)
			}},
			{"taken over", func(_ *testing.T, d *device) {
				newer := enrolled(d.client)
				d.wantClosed(wire.CodeTakenOver)
				newer.send(&wire.Bye{})
				newer.wantEnd()
			}},
			{"sent away", func(_ *testing.T, d *device) {
				s.table.find(d.client).goAway(reasonRebalance, 0, 0)
				var away wire.Goaway
				d.want(&away)
				d.wantEnd()
			}},
			{"says good-bye", func(_ *testing.T, d *device) { d.send(&wire.Bye{}); d.wantEnd() }},
			{"closes", func(_ *testing.T, d *device) { _ = d.conn.Close() }},
			{"resets", func(t *testing.T, d *device) {
				if err := tcpOf(d.conn).SetLinger(0); err != nil {
					t.Fatal(err)
				}
				_ = tcpOf(d.conn).Close()
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				d := enrolled(clientID(3))
				d.t = t
				wantParked(t, s, 1)
				tt.end(t, d)
				wantParked(t, s, 0)
				wantNoSockets(t, s)
			})
		}
	})
}

// tcpOf is the connection at the bottom of a device's.
func tcpOf(conn net.Conn) *net.TCPConn {
	switch c := conn.(type) {
	case *webEnd:
		return tcpOf(c.Conn)
	case *tls.Conn:
		return tcpOf(c.NetConn())
	}
	return conn.(*net.TCPConn)
}

// A gateway that drains sends parked devices away as it does others.
func TestDrainOfParkedDevices(t *testing.T) {
	for _, tt := range parkingListeners {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, testDoc())
			s := w.gateway("gw-1", func(cfg *Config, times *timings) {
				tt.change(cfg, times)
				cfg.Drain = Drain{Window: 0, Timeout: patience}
			})
			d := tt.dial(w, s)
			d.hello(clientID(1), wire.Token{})
			wantParked(t, s, 1)
			wantDrained(t, s, d)
		})
	}
}

// A push reaches a parked device without waking the session; the acknowledgement does.
func TestPushToAParkedDevice(t *testing.T) {
	eachParkingListener(t, testDoc(), func(t *testing.T, _ *world, s *Server, enrolled func(wire.ClientID) *device) {
		d := enrolled(clientID(1))
		wantParked(t, s, 1)
		if o := s.pushLocal(d.client, "news", []byte(`1`), time.Minute, nil); o != pushQueued {
			t.Fatalf("push = %s, want queued", o)
		}
		var p wire.Push
		d.want(&p)
		if n := testutil.ToFloat64(s.metrics.parked); n != 1 {
			t.Errorf("parked after a push = %v, want 1", n)
		}
		d.send(&wire.PushAck{ID: p.ID})
		ses := s.table.find(d.client)
		eventually(t, "the acknowledgement is taken", func() bool {
			ses.mu.Lock()
			defer ses.mu.Unlock()
			return len(ses.pushes) == 0
		})
		wantParked(t, s, 1)
	})
}

// The wheel watches over parked sessions.
func TestParkedDeviceTimesOut(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*dynamic.Document)
		want   wire.Code
	}{
		{"silence", func(d *dynamic.Document) { d.IdleTimeout, d.Heartbeat.Interval = dynamic.Duration(time.Second), 0 }, wire.CodeIdleTimeout},
		{"no heartbeat", func(d *dynamic.Document) {
			d.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(time.Second), Missed: 1}
		}, wire.CodeHeartbeatTimeout},
		{"token expired", func(d *dynamic.Document) { d.Token.TTL, d.Token.Grace = dynamic.Duration(time.Second), 0 }, wire.CodeTokenExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			doc := testDoc()
			tt.change(&doc)
			w := newWorld(t, doc)
			d := w.enrolled(w.gateway("gw-1", restless), clientID(1))
			d.wantClosed(tt.want)
		})
	}
}

// Readers leave and come as fast as they can while devices talk: every request is answered.
func TestParkingUnderTraffic(t *testing.T) {
	rounds := uint32(400)
	if testing.Short() {
		rounds = 50
	}
	doc := testDoc()
	doc.Heartbeat.Interval = 0
	eachParkingListener(t, doc, func(t *testing.T, _ *world, s *Server, enrolled func(wire.ClientID) *device) {
		parkUnderTraffic(t, s, enrolled, rounds)
	})
}

func parkUnderTraffic(t *testing.T, s *Server, enrolled func(wire.ClientID) *device, rounds uint32) {
	t.Helper()
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, ses := range s.table.all() {
				ses.mu.Lock()
				if ses.parkAt() != 0 && ses.state == stateOpen {
					ses.askToPark()
				}
				ses.mu.Unlock()
			}
			time.Sleep(50 * time.Microsecond) // leaves the machine to the devices
		}
	})
	var devices sync.WaitGroup
	for i := range byte(8) {
		d := enrolled(clientID(i + 1))
		devices.Go(func() {
			for n := range rounds {
				body := fmt.Sprintf(`{"device":%d,"n":%d}`, i, n)
				frame, err := wire.Append(nil, wire.Version1, &wire.Request{ID: n, Token: d.token, Service: "echo", Body: []byte(body)})
				if err != nil {
					t.Error(err)
					return
				}
				to := d.conn
				if web, ok := to.(*webEnd); ok { // in pieces, too, with a ping now and then
					to, frame = web.Conn, webSocketFrame(opBinary, frame)
					if n%3 == 0 {
						frame = append(webSocketFrame(opPing, []byte{byte(n)}), frame...)
					}
				}
				cut := int(n) % len(frame)
				if _, err := to.Write(frame[:cut]); err != nil {
					t.Errorf("device %d: %v", i, err)
					return
				}
				if _, err := to.Write(frame[cut:]); err != nil {
					t.Errorf("device %d: %v", i, err)
					return
				}
				f, ok := d.next()
				var resp wire.Response
				if !ok || wire.Unmarshal(f.Version, f.Payload, &resp) != nil || string(resp.Body) != body {
					t.Errorf("device %d: got %s %s, want the echo of %s", i, f.Type, f.Payload, body)
					return
				}
				if web, ok := d.conn.(*webEnd); ok && n%3 == 0 {
					web.wantPong(t, string([]byte{byte(n)}))
				}
			}
		})
	}
	devices.Wait()
	close(stop)
	asking.Wait()
	wantParked(t, s, 8)
}

// BenchmarkWake compares a request that finds its session parked with one that finds a reader. The difference of the
// medians is reported as µs-more.
func BenchmarkWake(b *testing.B) {
	medians := map[bool]time.Duration{}
	for _, parked := range []bool{false, true} {
		medians[parked] = medianRoundTrip(b, parked)
	}
	b.ReportMetric(float64(medians[true]-medians[false])/float64(time.Microsecond), "µs-more")
	b.ReportMetric(float64(medians[false])/float64(time.Microsecond), "µs-active")
	b.ReportMetric(0, "ns/op")
}

// medianRoundTrip is a request's median time over TLS, with its session parked before or not.
func medianRoundTrip(b *testing.B, parked bool) time.Duration {
	b.Helper()
	w := newWorld(b, testDoc())
	s := w.gateway("gw-1", func(_ *Config, times *timings) {
		times.park = time.Hour
		if parked {
			times.park = 1
		}
	})
	w.settled(s)
	d := w.enrolled(s, clientID(1))
	ses := s.table.find(d.client)
	times := make([]time.Duration, 0, b.N+1)
	for i := range uint32(b.N + 1) {
		for parked && testutil.ToFloat64(s.metrics.parked) == 0 {
			ses.mu.Lock()
			if ses.parkAt() != 0 {
				ses.askToPark()
			}
			ses.mu.Unlock()
			time.Sleep(50 * time.Microsecond)
		}
		time.Sleep(200 * time.Microsecond) // both find an idle machine
		begun := time.Now()
		d.roundTrip(i)
		times = append(times, time.Since(begun))
	}
	slices.Sort(times)
	return times[len(times)/2]
}
