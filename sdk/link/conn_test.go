package link_test

// The connection as both ends see it: handshake, limits, refusals, the end.

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/internal/leaktest"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const secret = "a secret of this test"

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// patient is a configuration whose times do not pass on a busy machine; those that it has stay.
func patient(cfg link.Config) link.Config {
	for _, d := range []*time.Duration{&cfg.HandshakeTimeout, &cfg.KeepAlive, &cfg.PingTimeout, &cfg.WriteTimeout} {
		if *d == 0 {
			*d = patience
		}
	}
	return cfg.WithGoodbyeTime(patience)
}

// dialPair is a TCP connection over loopback, both ends.
func dialPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// pair is a link over TCP, both ends after their handshake.
func pair(t testing.TB, gw, be link.Config) (gateway, backend *link.Conn) {
	t.Helper()
	near, far := dialPair(t)
	gw.Secret = secret
	accepted := make(chan error, 1)
	go func() {
		var err error
		backend, err = link.Accept(context.Background(), far, patient(be), link.SecretIn(secret))
		accepted <- err
	}()
	gateway, err := link.Open(context.Background(), near, patient(gw))
	if err := errors.Join(err, <-accepted); err != nil {
		t.Fatal(err)
	}
	return gateway, backend
}

// served runs Serve and gives its error.
func served(c *link.Conn, handle func(link.Frame) error) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- c.Serve(handle) }()
	return ended
}

func ignore(link.Frame) error { return nil }

func wait[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}

func TestHandshakeSettlesLimits(t *testing.T) {
	gateway, backend := pair(t,
		link.Config{Node: "gw-1", MaxFrame: 5000, MaxStreams: 10},
		link.Config{Node: "echo-1", Services: []string{"echo"}, MaxFrame: 9000, MaxStreams: 7})
	want := link.Limits{MaxFrame: 5000, MaxStreams: 7}
	if gateway.Limits() != want || backend.Limits() != want {
		t.Errorf("limits: got %v and %v, want %v", gateway.Limits(), backend.Limits(), want)
	}
	if p := gateway.Peer(); p.Node != "echo-1" || len(p.Services) != 1 || p.Services[0] != "echo" || p.Secret != "" {
		t.Errorf("the backend, seen from the gateway: %v", p)
	}
	if p := backend.Peer(); p.Node != "gw-1" || p.Secret != "" {
		t.Errorf("the gateway, seen from the backend: %v, secret kept: %v", p, p.Secret != "")
	}
	gateway.Close()
	backend.Close()
}

func TestSecretRefused(t *testing.T) {
	for _, presented := range []string{"", "wrong", secret + "x", secret[:3]} {
		near, far := dialPair(t)
		accepted := make(chan error, 1)
		go func() {
			_, err := link.Accept(context.Background(), far, patient(link.Config{Node: "not to be told"}), link.SecretIn("", secret))
			accepted <- err
		}()
		var heard bytes.Buffer
		_, err := link.Open(context.Background(), tap{near, &heard}, patient(link.Config{Secret: presented}))
		if !errors.Is(err, link.ErrRefused) || !errors.Is(err, &wire.Error{Code: link.CodeBadSecret}) {
			t.Errorf("%q, the gateway: got %v, want ErrRefused with bad_secret", presented, err)
		}
		if err := wait(t, "Accept's error", accepted); !errors.Is(err, &wire.Error{Code: link.CodeBadSecret}) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q, the backend: got %v, want bad_secret", presented, err)
		}
		if s := heard.String(); strings.Contains(s, secret) || strings.Contains(s, "not to be told") {
			t.Errorf("%q: the backend told %q", presented, s)
		}
	}
}

// tap copies what is read.
type tap struct {
	net.Conn
	heard *bytes.Buffer
}

func (c tap) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.heard.Write(b[:n])
	return n, err
}

func TestSecretIn(t *testing.T) {
	allow := link.SecretIn("one", "", "two")
	for presented, want := range map[string]bool{"one": true, "two": true, "": false, "three": false, "onetwo": false} {
		if got := allow(presented); got != want {
			t.Errorf("%q: got %v, want %v", presented, got, want)
		}
	}
	if link.SecretIn()("") || link.SecretIn("", "")("") {
		t.Error("no secret at all lets somebody in")
	}
}

func TestHandshakeEnds(t *testing.T) {
	accept := func(ctx context.Context, nc net.Conn, timeout time.Duration) error {
		_, err := link.Accept(ctx, nc, patient(link.Config{HandshakeTimeout: timeout}), link.SecretIn(secret))
		return err
	}
	open := func(ctx context.Context, nc net.Conn, timeout time.Duration) error {
		_, err := link.Open(ctx, nc, patient(link.Config{HandshakeTimeout: timeout}))
		return err
	}
	for name, shake := range map[string]func(context.Context, net.Conn, time.Duration) error{"accept": accept, "open": open} {
		t.Run(name+" silence", func(t *testing.T) {
			near, _ := dialPair(t)
			if err := shake(context.Background(), near, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "no HELLO within 50ms") {
				t.Errorf("got %v, want a deadline", err)
			}
			if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection is open: %v", err)
			}
		})
		t.Run(name+" context", func(t *testing.T) {
			near, _ := dialPair(t)
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := shake(ctx, near, patience); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
		})
		t.Run(name+" first frame is not HELLO", func(t *testing.T) {
			near, far := dialPair(t)
			if _, err := far.Write(link.AppendGoaway(nil)); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, far); far.Close() }() // ends when near is closed
			if err := shake(context.Background(), near, patience); !errors.Is(err, &wire.Error{Code: wire.CodeBadFrame}) {
				t.Errorf("got %v, want bad_frame", err)
			}
		})
		t.Run(name+" garbage", func(t *testing.T) {
			near, far := dialPair(t)
			if _, err := far.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, far); far.Close() }() // ends when near is closed
			if err := shake(context.Background(), near, patience); !errors.Is(err, &wire.Error{Code: wire.CodeBadVersion}) {
				t.Errorf("got %v, want bad_version", err)
			}
		})
	}
	t.Run("oversize HELLO", func(t *testing.T) {
		near, far := dialPair(t)
		accepted := make(chan error, 1)
		go func() { accepted <- accept(context.Background(), far, patience) }()
		frame := link.AppendHello(nil, &link.Hello{Node: strings.Repeat("n", link.MaxHello), Secret: secret, MaxFrame: 4096, MaxStreams: 1})
		if _, err := near.Write(frame); err != nil {
			t.Fatal(err)
		}
		if f, _ := io.ReadAll(near); !bytes.Contains(f, []byte("frame_too_large")) {
			t.Errorf("the peer was told %q, want frame_too_large", f)
		}
		near.Close()
		if err := wait(t, "Accept's error", accepted); !errors.Is(err, &wire.Error{Code: wire.CodeFrameTooLarge}) {
			t.Errorf("got %v, want frame_too_large", err)
		}
	})
}

// Requests, answers, pushes and cancellations reach the other end as they were sent.
func TestEverythingArrives(t *testing.T) {
	gateway, backend := pair(t, link.Config{}, link.Config{})
	id := wire.ClientID{1, 2, 3}
	atBackend, atGateway := make(chan string, 10), make(chan string, 10)
	backendEnded := served(backend, func(f link.Frame) error {
		switch f.Type {
		case link.TypeRequest:
			r, err := f.Request()
			atBackend <- fmt.Sprintf("%x %s %v %v %s", r.ClientID[:3], r.Service, r.Deadline, r.JSON, r.Body)
			return err
		case link.TypePushResult:
			r, err := f.PushResult()
			atBackend <- fmt.Sprintf("%d %v", f.Stream, r)
			return err
		}
		atBackend <- fmt.Sprintf("%v %d", f.Type, f.Stream)
		return nil
	})
	gatewayEnded := served(gateway, func(f link.Frame) error {
		switch f.Type {
		case link.TypePush:
			p, err := f.Push()
			atGateway <- fmt.Sprintf("%x %s %s", p.ClientID[:3], p.Service, p.Body)
			return err
		case link.TypeError:
			e, err := f.Error()
			atGateway <- fmt.Sprintf("%d %v", f.Stream, e)
			return err
		}
		atGateway <- fmt.Sprintf("%v %d %s", f.Type, f.Stream, f.Payload)
		return nil
	})
	for _, step := range []struct {
		name string
		send error
		at   chan string
		want string
	}{
		{"request", gateway.Request(2, &link.Request{ClientID: id, Service: "echo", Deadline: time.Second, JSON: true, Body: []byte("{}")}), atBackend, "010203 echo 1s true {}"},
		{"cancel", gateway.Cancel(6), atBackend, "CANCEL 6"}, // of another: a request that still waits would go
		{"response", backend.Respond(2, []byte("[1]")), atGateway, "RESPONSE 2 [1]"},
		{"error", backend.Fail(4, wire.CodeBackendError, "no"), atGateway, "4 backend_error: no"},
		{"push", backend.Push(3, &link.Push{ClientID: id, Service: "news", Body: []byte("1")}), atGateway, "010203 news 1"},
		{"push result", gateway.PushResult(3, link.PushTimedOut), atBackend, "3 timed_out"},
		{"goaway", backend.Goaway(), atGateway, "GOAWAY 0 "},
		{"goaway back", gateway.Goaway(), atBackend, "GOAWAY 0"},
	} {
		if step.send != nil {
			t.Errorf("%s: %v", step.name, step.send)
		} else if got := wait(t, step.name, step.at); got != step.want {
			t.Errorf("%s: got %q, want %q", step.name, got, step.want)
		}
	}
	gateway.Finish()
	if err := wait(t, "the gateway's end", gatewayEnded); err != link.ErrClosed {
		t.Errorf("the gateway ended with %v, want ErrClosed", err)
	}
	if err := wait(t, "the backend's end", backendEnded); err != io.EOF {
		t.Errorf("the backend ended with %v, want EOF", err)
	}
	if err := gateway.Request(6, &link.Request{Service: "x"}); err != link.ErrClosed {
		t.Errorf("a request after the end: got %v, want ErrClosed", err)
	}
}

// What cannot be taken closes the link, and the peer hears why.
func TestMistakesCloseTheLink(t *testing.T) {
	raw := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  wire.Code
	}{
		{"second hello", link.AppendHello(nil, &link.Hello{MaxFrame: 4096, MaxStreams: 1}), wire.CodeBadFrame},
		{"response to a backend", link.AppendResponse(nil, 3, nil), wire.CodeBadFrame},
		{"push to a backend", link.AppendPush(nil, 3, &link.Push{Service: "x"}), wire.CodeBadFrame},
		{"request of a backend's id", link.AppendRequest(nil, 3, &link.Request{Service: "x"}), wire.CodeBadFrame},
		{"request of stream 0", link.AppendRequest(nil, 0, &link.Request{Service: "x"}), wire.CodeBadFrame},
		{"ping of 7 bytes", raw("01 07 0000 00000007 0000000000000000 01020304050607"), wire.CodeBadFrame},
		{"unknown type", raw("01 63 0000 00000000 0000000000000000"), wire.CodeBadFrame},
		{"unknown version", raw("07 09 0000 00000000 0000000000000000"), wire.CodeBadVersion},
		{"oversize", raw("01 03 0000 7fffffff 0000000000000002"), wire.CodeFrameTooLarge},
		{"the handler's own refusal", link.AppendRequest(nil, 2, &link.Request{Service: "refuse"}), wire.CodeBadFrame},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := dialPair(t)
			accepted := make(chan error, 1)
			var backend *link.Conn
			go func() {
				var err error
				backend, err = link.Accept(context.Background(), far, patient(link.Config{}), link.SecretIn(secret))
				accepted <- err
			}()
			hello := link.AppendHello(nil, &link.Hello{Secret: secret, MaxFrame: 1 << 20, MaxStreams: 1})
			if _, err := near.Write(append(hello, c.frame...)); err != nil {
				t.Fatal(err)
			}
			if err := wait(t, "the handshake", accepted); err != nil {
				t.Fatal(err)
			}
			ended := served(backend, func(f link.Frame) error {
				if r, err := f.Request(); err != nil || r.Service != "refuse" {
					t.Errorf("%v of stream %d got through: %v", f.Type, f.Stream, err)
				}
				return wire.Errorf(wire.CodeBadFrame, "refused by the handler")
			})
			_ = near.SetReadDeadline(time.Now().Add(patience))
			told, err := io.ReadAll(near)
			if err != nil {
				t.Errorf("the connection did not end cleanly: %v", err)
			}
			near.Close()
			if !bytes.Contains(told, append([]byte(c.want), 0)) {
				t.Errorf("the peer was told %q, want %s", told, c.want)
			}
			if err := wait(t, "the end", ended); !errors.Is(err, &wire.Error{Code: c.want}) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// The other end's good-bye is an error that says so.
func TestRefusedLater(t *testing.T) {
	gateway, backend := pair(t, link.Config{}, link.Config{})
	gatewayEnded := served(gateway, ignore)
	backendEnded := served(backend, func(link.Frame) error { return wire.Errorf(wire.CodeOverloaded, "enough") })
	if err := gateway.Request(2, &link.Request{Service: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, "the gateway's end", gatewayEnded); !errors.Is(err, link.ErrRefused) || !errors.Is(err, &wire.Error{Code: wire.CodeOverloaded}) {
		t.Errorf("the gateway: got %v, want ErrRefused with overloaded", err)
	}
	if err := wait(t, "the backend's end", backendEnded); !errors.Is(err, &wire.Error{Code: wire.CodeOverloaded}) {
		t.Errorf("the backend: got %v, want its own error", err)
	}
}

// Frames over the peer's limit are refused where they are sent.
func TestTooLargeToSend(t *testing.T) {
	gateway, backend := pair(t, link.Config{}, link.Config{MaxFrame: 2048})
	defer gateway.Close()
	defer backend.Close()
	tooLarge := &wire.Error{Code: wire.CodeFrameTooLarge}
	if err := gateway.Request(2, &link.Request{Service: "x", Body: make([]byte, 2048)}); !errors.Is(err, tooLarge) {
		t.Errorf("request: got %v", err)
	}
	if err := backend.Respond(2, make([]byte, 2049)); !errors.Is(err, tooLarge) {
		t.Errorf("response: got %v", err)
	}
	if err := backend.Respond(2, make([]byte, 2048)); err != nil {
		t.Errorf("response of just the limit: got %v", err)
	}
	if err := backend.Fail(2, "code", strings.Repeat("m", 10000)); err != nil {
		t.Errorf("a long message is cut: got %v", err)
	}
}
