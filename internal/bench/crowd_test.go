//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/sdk/wire"
)

// serveTLS has handle serve connections over TLS until the test ends, and then
// looks for goroutines that are left.
func serveTLS(t *testing.T, handle func(net.Conn)) (address string) {
	t.Helper()
	t.Cleanup(func() { leaktest.None(t) })
	paths, err := certs.EnsureDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(paths.Server, paths.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		running.Wait()
	})
	return listener.Addr().String()
}

// newTestCrowd makes a crowd and the server for it. It is closed before the
// server waits for its connections to end.
func newTestCrowd(t *testing.T, handle func(net.Conn)) (c *crowd, address string) {
	t.Helper()
	address = serveTLS(t, handle)
	c = newCrowd()
	t.Cleanup(c.close)
	return c, address
}

// fakeGateway answers devices: each request by its own body, as reply has it, each heartbeat with
// a new token, which the device must then use.
func fakeGateway(reply func(body []byte) []byte) func(net.Conn) {
	return func(conn net.Conn) {
		reader, token := wire.NewReader(conn, 0), wire.Token{1}
		say := func(m wire.Message) {
			if frame, err := wire.Append(nil, reader.Version(), m); err == nil {
				_, _ = conn.Write(frame)
			}
		}
		for {
			frame, err := reader.Next()
			if err != nil {
				return
			}
			switch frame.Type {
			case wire.TypeHello:
				say(&wire.Welcome{Token: token, ExpiresAt: time.Now().Add(time.Hour)})
			case wire.TypeHeartbeat:
				token[0]++
				say(&wire.HeartbeatAck{Token: token, ExpiresAt: time.Now().Add(time.Hour)})
			case wire.TypeRequest:
				var request wire.Request
				if err := wire.Unmarshal(frame.Version, frame.Payload, &request); err != nil || request.Token != token {
					say(&wire.Error{Code: wire.CodeBadToken, Message: "not that one", Close: true})
					return
				}
				say(&wire.Response{ID: request.ID, Body: reply(request.Body)})
			}
		}
	}
}

func same(body []byte) []byte { return body }

func TestCrowd(t *testing.T) {
	for _, test := range []struct {
		name    string
		version byte
		serve   func(net.Conn)
	}{
		{"echo", 0, func(conn net.Conn) { _, _ = io.Copy(conn, conn) }},
		{"devices", wire.Version1, fakeGateway(same)},
		{"devices of version 2", wire.Version2, fakeGateway(same)},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, address := newTestCrowd(t, test.serve)
			err := c.open(crowdSpec{Address: address, Connections: 20, Payload: 64, Version: test.version})
			if err != nil {
				t.Fatal(err)
			}
			m, err := c.measure(measureSpec{Warm: 10 * time.Millisecond, Window: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			if m.Done == 0 || m.P50 <= 0 {
				t.Errorf("got %+v, want round trips that took time", m)
			}
			again, err := c.measure(measureSpec{Window: 100 * time.Millisecond, Again: true})
			if err != nil {
				t.Fatal(err)
			}
			if again.Done <= m.Done || again.Elapsed < m.Elapsed+100*time.Millisecond || c.window.times.TotalCount() < again.Done {
				t.Errorf("got %+v and then %+v, want the sum of both windows", m, again)
			}
			if _, err := c.measure(measureSpec{Warm: 100 * time.Millisecond, Window: 500 * time.Millisecond, Rate: 200}); err != nil {
				t.Fatal(err)
			}
			if got := c.window.times.TotalCount(); got != 100 {
				t.Errorf("%d times were recorded, want those of 100 messages", got)
			}
			if err := c.hush(hushSpec{Silence: time.Millisecond}); err != nil {
				t.Fatal(err)
			}
			w, err := c.wake(wakeSpec{Members: 5})
			if err != nil || w.First <= 0 || w.Second <= 0 {
				t.Errorf("got %+v, %v, want two times", w, err)
			}
		})
	}
}

// TestCrowdTakesNewTokens: the fake gateway refuses a request with another than
// the token of its last ack.
func TestCrowdTakesNewTokens(t *testing.T) {
	c, address := newTestCrowd(t, fakeGateway(same))
	if err := c.open(crowdSpec{Address: address, Connections: 1, Payload: 64, Version: wire.Version1}); err != nil {
		t.Fatal(err)
	}
	m := c.members[0]
	old := *m.speech.(*deviceSpeech).token.Load()
	if err := m.sign(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); *m.speech.(*deviceSpeech).token.Load() == old; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the device did not take the new token")
		}
	}
	if _, err := m.roundTrip(); err != nil {
		t.Errorf("with the new token: %v", err)
	}
}

// TestAwaitBeats: each member, also of those that joined last, has had its signs of life answered. The fake gateway counts them
// in the token.
func TestAwaitBeats(t *testing.T) {
	const times = 3
	c, address := newTestCrowd(t, fakeGateway(same))
	spec := crowdSpec{Address: address, Connections: 5, Payload: 64, Version: wire.Version1, Heartbeat: 100 * time.Millisecond}
	for range 2 {
		if err := c.open(spec); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitBeats(beatsSpec{Times: times, Within: 30 * time.Second}); err != nil {
			t.Fatal(err)
		}
		for _, m := range c.members {
			if got := m.speech.(*deviceSpeech).token.Load()[0] - 1; got < times {
				t.Errorf("client %d has had %d signs of life answered, want %d", m.number, got, times)
			}
		}
	}
}

// TestAwaitBeatsOfEchoes: a sign of life is a message, but not every message is one.
func TestAwaitBeatsOfEchoes(t *testing.T) {
	c, address := newTestCrowd(t, func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
	if err := c.open(crowdSpec{Address: address, Connections: 2, Payload: 64}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.members[0].roundTrip(); err != nil {
		t.Fatal(err)
	}
	if err := c.awaitBeats(beatsSpec{Times: 1}); err == nil {
		t.Error("a crowd without signs of life was said to give some")
	}
	for _, m := range c.members {
		if err := m.sign(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.awaitBeats(beatsSpec{Times: 1, Within: 30 * time.Second}); err != nil {
		t.Error(err)
	}
}

// TestAwaitBeatsWantsAnswers: what was sent only does not count.
func TestAwaitBeatsWantsAnswers(t *testing.T) {
	deaf := func(conn net.Conn) {
		if _, err := io.CopyN(conn, conn, 64); err == nil {
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	c, address := newTestCrowd(t, deaf)
	if err := c.open(crowdSpec{Address: address, Connections: 1, Payload: 64}); err != nil {
		t.Fatal(err)
	}
	if err := c.members[0].sign(); err != nil {
		t.Fatal(err)
	}
	if err := c.awaitBeats(beatsSpec{Times: 1, Within: 50 * time.Millisecond}); err == nil {
		t.Error("a sign of life counts that nobody answered")
	}
}

// TestHushWantsAllParked: a device that is awake cannot be woken.
func TestHushWantsAllParked(t *testing.T) {
	const devices = 3
	address := serveTLS(t, fakeGateway(same))
	for parked, want := range map[int]bool{devices - 1: false, devices: true} {
		page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "goshield_gateway_connections{state=\"active\"} 7\ngoshield_gateway_connections{state=\"parked\"} %d\n", parked)
		}))
		defer page.Close()
		trial := &trial{address: address, admin: page.Listener.Addr().String(), version: wire.Version1}
		crowd, err := trial.startCrowd(t.Context(), crowdSpec{Connections: devices, Payload: 64})
		if err != nil {
			t.Fatal(err)
		}
		defer crowd.stop()
		err = trial.hush(t.Context(), contestant{ours: "gateway"}, crowd, devices, options{})
		if (err == nil) != want {
			t.Errorf("%d of %d parked: got %v, want success %t", parked, devices, err, want)
		}
		if err := trial.hush(t.Context(), contestant{}, crowd, devices, options{}); err != nil {
			t.Errorf("another program parks nothing: %v", err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestCrowdChecksTheAnswer: a gateway that mixes answers up must not be
// measured as if it worked.
func TestCrowdChecksTheAnswer(t *testing.T) {
	wrong := func([]byte) []byte { return []byte(`"another one's"`) }
	c, address := newTestCrowd(t, fakeGateway(wrong))
	err := c.open(crowdSpec{Address: address, Connections: 1, Payload: 64, Version: wire.Version1})
	if want := "another one's"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestCrowdTellsARefusal: with the gateway's own code.
func TestCrowdTellsARefusal(t *testing.T) {
	refuse := func(conn net.Conn) {
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return
		}
		frame, err := wire.Append(nil, wire.Version1, &wire.Error{Code: wire.CodeOverloaded, Message: "later", Close: true})
		if err == nil {
			_, _ = conn.Write(frame)
		}
		_, _ = io.Copy(io.Discard, conn)
	}
	c, address := newTestCrowd(t, refuse)
	err := c.open(crowdSpec{Address: address, Connections: 1, Payload: 64, Version: wire.Version1})
	var refusal *wire.Error
	if !errors.As(err, &refusal) || refusal.Code != wire.CodeOverloaded {
		t.Errorf("got %v, want %s", err, wire.CodeOverloaded)
	}
}

func TestHandshakes(t *testing.T) {
	address := serveTLS(t, func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) })
	for _, resume := range []bool{false, true} {
		m, err := greetAll(greetSpec{Address: address, AtOnce: 2, Resume: resume, Warm: time.Millisecond, Window: time.Second})
		if err != nil || m.Done == 0 {
			t.Errorf("resuming %t: got %+v, %v, want handshakes", resume, m, err)
		}
	}
}

// TestGatewayWithoutItsLimit: what is to be measured is a request that the service's limit takes part in.
func TestGatewayWithoutItsLimit(t *testing.T) {
	b := &bout{who: contestant{ours: "gateway"}}
	for limited, want := range map[float64]bool{99: false, 100: true, 110: true} {
		s := serving{relaying: relaying{Closed: measurement{Done: 100}}}
		err := s.account(b, []float64{1000, 10, 5}, []float64{1220, 120, 5 + limited})
		if (err == nil) != want {
			t.Errorf("%v of 100 requests limited: got %v, want success %t", limited, err, want)
		}
		if want && s.Allocations != 2 {
			t.Errorf("got %v allocations a request, want 2", s.Allocations)
		}
	}
}

func TestSumOf(t *testing.T) {
	page := "# HELP a_total x\na_total{code=\"ok\"} 3\na_total{code=\"a b\"} 4\na_total_more 9\nb 1.5e+06\n"
	for name, want := range map[string]float64{"a_total": 7, `a_total{code="a b"}`: 4, "b": 1.5e6, "c": 0} {
		if got := sumOf(page, name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}
