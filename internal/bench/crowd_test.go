//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
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
			if _, err := c.measure(measureSpec{Warm: 100 * time.Millisecond, Window: 500 * time.Millisecond, Rate: 200}); err != nil {
				t.Fatal(err)
			}
			if got := c.window.times.TotalCount(); got != 100 {
				t.Errorf("%d times were recorded, want those of 100 messages", got)
			}
			w, err := c.wake(wakeSpec{Members: 5, Silence: time.Millisecond})
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

func TestSumOf(t *testing.T) {
	page := "# HELP a_total x\na_total{code=\"ok\"} 3\na_total{code=\"a b\"} 4\na_total_more 9\nb 1.5e+06\n"
	for name, want := range map[string]float64{"a_total": 7, "b": 1.5e6, "c": 0} {
		if got := sumOf(page, name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}
