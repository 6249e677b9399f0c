package stack

// The protocol's rules, by the conformance kit: kept by this gateway in both versions, over TCP and
// WebSocket, and found broken where something in between breaks them.

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/conformance"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// conformanceDocument lets every rule be seen in less than half a minute. The times lie so far apart that a machine which
// stands still for some seconds does not let the wrong one pass first: a frame must be complete within ten seconds.
func conformanceDocument() dynamic.Document {
	doc := dynamic.Default()
	doc.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(time.Second), Missed: 20}
	doc.IdleTimeout = dynamic.Duration(16 * time.Second)
	doc.Token.RotateProbability, doc.Token.Grace = 1, dynamic.Duration(15*time.Second)
	return doc
}

// kit is the configuration that tries this stack.
func (f *fleet) kit() conformance.Config {
	return conformance.Config{
		Addr: f.Addr(), WebSocket: f.WebSocketAddr(), TLS: f.tls, FirstMAC: firstMAC(), Patience: time.Minute,
	}
}

// shedAll has each gateway send its devices away.
func (f *fleet) shedAll(ctx context.Context) error {
	secret, err := os.ReadFile(f.secrets.Admin)
	if err != nil {
		return err
	}
	for i := range f.Gateways() {
		url := fmt.Sprintf("http://%s/gateway-%d/api/shed", f.AdminAddr(), i+1)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"connections":1000,"over_ms":0}`))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(secret)))
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			return fmt.Errorf("%s: %s", url, resp.Status)
		}
	}
	return nil
}

// wantKept wants every rule to be tried and kept, but for those that need not be tried.
func wantKept(t *testing.T, cfg conformance.Config, untried ...string) {
	t.Helper()
	report, err := conformance.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range report.Outcomes {
		if o.Result == conformance.Broken || o.Result == conformance.NotTried && !slices.ContainsFunc(untried, func(name string) bool { return strings.HasPrefix(o.Rule, name) }) {
			t.Errorf("%s, %s: %s: %s", o.Way, o.Rule, o.Result, o.Seen)
		}
	}
	t.Log(report.Summary())
}

func TestConformance(t *testing.T) {
	t.Parallel() // it waits, mostly
	f := start(t, conformanceDocument(), nil)
	wantKept(t, f.kit(), "proof/", "goaway/") // the next test's
}

// The rest of the rules: enrolment by key, and devices that are sent away.
func TestConformanceWithKeysAndGoaway(t *testing.T) {
	t.Parallel()
	doc := conformanceDocument()
	doc.Enrolment = dynamic.EnrolKey
	f := startWith(t, Config{Gateways: 1, DataDir: t.TempDir(), Document: doc})
	text, err := os.ReadFile(f.secrets.GroupKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	cfg := f.kit()
	cfg.Rules, cfg.Shed = []string{"proof/", "opening/enrol", "goaway/"}, f.shedAll
	cfg.DeviceKey = func(id wire.ClientID) *[32]byte {
		k := wire.DeviceKey(key, id)
		return &k
	}
	wantKept(t, cfg, "goaway/serves") // whoever is shed is given no time: the next test's
}

// A gateway that drains gives its devices time, and serves them until then.
func TestConformanceWithADrain(t *testing.T) {
	t.Parallel()
	f := startWith(t, Config{Gateways: 1, DataDir: t.TempDir(), Document: dynamic.Default(), DrainWindow: 20 * time.Second})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var draining sync.WaitGroup
	defer draining.Wait()
	cfg := f.kit()
	cfg.Rules = []string{"goaway/serves"}
	cfg.Shed = func(context.Context) error {
		draining.Go(func() {
			if err := f.DrainGateway(ctx, 0); err != nil {
				t.Errorf("drain: %v", err)
			}
		})
		return nil
	}
	wantKept(t, cfg)
}

// saboteur is a device's gateway that breaks the protocol: it passes frames on between devices, which reach it
// without TLS, and a stack, changing them.
type saboteur struct {
	toDevice  func(s *sabotage, f wire.Frame) [][]byte // nil: as they are
	toGateway func(s *sabotage, f wire.Frame) [][]byte
	staysOpen bool // when the gateway closes
}

// sabotage is one connection through a saboteur. Each direction is one goroutine's.
type sabotage struct {
	mu    sync.Mutex
	token wire.Token // the first that WELCOME brought
}

// serve starts it and returns its address. It ends with the test, before the stack.
func (b saboteur) serve(t *testing.T, f *fleet) string {
	t.Helper()
	ln, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			device, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() { b.pass(ctx, device, f) })
		}
	})
	return ln.Addr().String()
}

// pass ends when one side has closed, and with ctx.
func (b saboteur) pass(ctx context.Context, device net.Conn, f *fleet) {
	defer device.Close()
	gateway, err := (&tls.Dialer{Config: f.tls}).DialContext(ctx, "tcp", f.Addr())
	if err != nil {
		return
	}
	defer gateway.Close()
	defer context.AfterFunc(ctx, func() { _, _ = device.Close(), gateway.Close() })()
	s := &sabotage{}
	var up sync.WaitGroup
	up.Go(func() {
		_ = passFrames(gateway, device, func(f wire.Frame) [][]byte { return b.change(s, b.toGateway, f) })
		if !b.staysOpen {
			_ = gateway.Close()
		}
	})
	_ = passFrames(device, gateway, func(f wire.Frame) [][]byte { return b.change(s, b.toDevice, f) })
	if b.staysOpen {
		_, _ = io.Copy(io.Discard, device) // until the device has enough
	}
	_ = device.Close()
	up.Wait()
}

func (b saboteur) change(s *sabotage, by func(*sabotage, wire.Frame) [][]byte, f wire.Frame) [][]byte {
	if f.Type == wire.TypeWelcome {
		var w wire.Welcome
		if wire.Unmarshal(f.Version, f.Payload, &w) == nil {
			s.mu.Lock()
			s.token = w.Token
			s.mu.Unlock()
		}
	}
	if by == nil {
		return [][]byte{whole(f)}
	}
	return by(s, f)
}

// passFrames passes on what can be read as frames, and then bytes.
func passFrames(to io.Writer, from io.Reader, change func(wire.Frame) [][]byte) error {
	var seen bytes.Buffer // of the frame that is being read
	in := wire.NewReader(io.TeeReader(from, &seen), wire.MaxPayload)
	for {
		f, err := in.Next()
		if err != nil { // no frame: what is left goes on as it is
			if _, err := to.Write(seen.Bytes()); err != nil {
				return err
			}
			_, err := io.Copy(to, from)
			return err
		}
		seen.Next(wire.HeaderSize + len(f.Payload))
		for _, frame := range change(f) {
			if _, err := to.Write(frame); err != nil {
				return err
			}
		}
	}
}

// whole is a frame as bytes.
func whole(f wire.Frame) []byte { return append(f.Header.Append(nil), f.Payload...) }

// changed decodes a frame into m, has it changed, and encodes it again; other frames stay as they are.
func changed[M wire.Message](f wire.Frame, m M, change func(M)) [][]byte {
	if f.Type != m.Type() || wire.Unmarshal(f.Version, f.Payload, m) != nil {
		return [][]byte{whole(f)}
	}
	change(m)
	out, err := wire.Append(nil, f.Version, m)
	if err != nil {
		return nil
	}
	return [][]byte{out}
}

// dropped leaves out frames of a type.
func dropped(t wire.Type) func(*sabotage, wire.Frame) [][]byte {
	return func(_ *sabotage, f wire.Frame) [][]byte {
		if f.Type == t {
			return nil
		}
		return [][]byte{whole(f)}
	}
}

// The kit must see what is broken, and nothing else: each saboteur breaks rules, by name.
func TestConformanceFindsWhatIsBroken(t *testing.T) {
	t.Parallel()
	doc := conformanceDocument()
	doc.Heartbeat.Interval, doc.IdleTimeout = dynamic.Duration(time.Minute), dynamic.Duration(3*time.Minute) // longer than any wait
	f := start(t, doc, nil)
	for _, test := range []struct {
		name   string
		breaks saboteur
		rule   string
		want   string // what the report says was seen
	}{
		{"errors do not say that they close", saboteur{toDevice: func(_ *sabotage, f wire.Frame) [][]byte {
			return changed(f, &wire.Error{}, func(e *wire.Error) { e.Close = false })
		}}, "frame/garbage", "close is not true"},
		{"another code", saboteur{toDevice: func(_ *sabotage, f wire.Frame) [][]byte {
			return changed(f, &wire.Error{}, func(e *wire.Error) { e.Code = wire.CodeInternal })
		}}, "opening/second-hello", "want [bad_frame]"},
		{"a message that names nothing", saboteur{toDevice: func(_ *sabotage, f wire.Frame) [][]byte {
			return changed(f, &wire.Error{}, func(e *wire.Error) { e.Message = "no" })
		}}, "frame/client-id", "does not name client_id"},
		{"a connection stays open after an error", saboteur{staysOpen: true}, "token/missing", "is not closed"},
		{"wrong answers", saboteur{toDevice: func(_ *sabotage, f wire.Frame) [][]byte {
			return changed(f, &wire.Response{}, func(r *wire.Response) { r.Body = []byte(`"yes"`) })
		}}, "request/echo", "was answered by"},
		{"answers come twice", saboteur{toDevice: func(_ *sabotage, f wire.Frame) [][]byte {
			if f.Type == wire.TypeResponse {
				return [][]byte{whole(f), whole(f)}
			}
			return [][]byte{whole(f)}
		}}, "request/many", "once"},
		{"any token is good", saboteur{toGateway: func(s *sabotage, f wire.Frame) [][]byte {
			s.mu.Lock()
			defer s.mu.Unlock()
			return changed(f, &wire.Heartbeat{}, func(h *wire.Heartbeat) {
				if !h.Token.IsZero() {
					h.Token = s.token
				}
			})
		}}, "token/wrong", "HEARTBEAT_ACK"},
		{"a new token comes once", saboteur{toDevice: func() func(*sabotage, wire.Frame) [][]byte {
			var told sync.Map // tokens
			return func(_ *sabotage, f wire.Frame) [][]byte {
				return changed(f, &wire.HeartbeatAck{}, func(a *wire.HeartbeatAck) {
					if _, again := told.LoadOrStore(a.Token, true); again {
						*a = wire.HeartbeatAck{}
					}
				})
			}
		}()}, "rotation/repeat", "does not repeat"},
		{"heartbeats are not answered", saboteur{toDevice: dropped(wire.TypeHeartbeatAck)}, "heartbeat/ack", "nothing came"},
		{"errors are swallowed", saboteur{toDevice: dropped(wire.TypeError)}, "takeover", "closed the connection"},
		{"limits without a time", saboteur{toDevice: func(_ *sabotage, f wire.Frame) [][]byte {
			return changed(f, &wire.Error{}, func(e *wire.Error) { e.RetryAfter = 0 })
		}}, "request/rate-limit", "retry_after_ms 0"},
		{"another version", saboteur{toDevice: func(_ *sabotage, f wire.Frame) [][]byte {
			f.Version = wire.Version1 + wire.Version2 - f.Version
			return [][]byte{whole(f)}
		}}, "opening/enrol", "of version"},
		{"pushes are lost", saboteur{toDevice: dropped(wire.TypePush)}, "push/ack", "nothing came"},
		{"nobody waits for HELLO", saboteur{toDevice: dropped(wire.TypeError)}, "opening/timeout", "closed the connection"},
		{"nothing", saboteur{}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := f.kit()
			cfg.Addr, cfg.WebSocket, cfg.TLS = test.breaks.serve(t, f), "", nil
			if test.rule == "" { // an honest one in between breaks no rule
				cfg.Rules = []string{"opening/enrol", "frame/garbage", "frame/pieces", "frame/together", "token/", "rotation/repeat", "takeover", "request/", "heartbeat/", "push/"}
				wantKept(t, cfg)
				return
			}
			cfg.Rules = []string{test.rule}
			switch test.want { // what is waited for in vain
			case "nothing came":
				cfg.AnswerTime = 2 * time.Second
			case "is not closed": // the kit has to be welcomed within that, too
				cfg.AnswerTime = 8 * time.Second
			}
			report, err := conformance.Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range report.Outcomes {
				if o.Result != conformance.Broken || !strings.Contains(o.Seen, test.want) {
					t.Errorf("%s, %s: got %s: %q, want it to fail for %q", o.Way, o.Rule, o.Result, o.Seen, test.want)
				}
			}
			if report.Err() == nil {
				t.Error("the report has no error")
			}
		})
	}
}
