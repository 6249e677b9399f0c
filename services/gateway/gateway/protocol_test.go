package gateway

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// frame is a raw version 1 frame.
func frame(t wire.Type, payload string) []byte {
	h := wire.Header{Version: wire.Version1, Type: t, Length: uint16(len(payload))}
	return append(h.Append(nil), payload...)
}

func TestWelcomeTellsTheRules(t *testing.T) {
	doc := testDoc()
	doc.Frame.MaxBytes = 4096
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		w := d.welcome
		if w.Token.IsZero() || w.Heartbeat != 20*time.Second || w.IdleTimeout != 90*time.Second || w.MaxFrame != 4096 || w.Session == "" {
			t.Errorf("welcome = %+v, want a token, 20s, 90s, 4096 and a session", w)
		}
		if want := time.Now().Add(24 * time.Hour); w.ExpiresAt.Sub(want).Abs() > time.Second {
			t.Errorf("expires_at = %v, want %v", w.ExpiresAt, want)
		}
		d.roundTrip(7)
		again := r.connect(t)
		again.hello(clientID(1), d.token)
		if again.token != d.token {
			t.Error("resume brought another token, want the one presented")
		}
	})
}

func TestRefusalsBeforeWelcome(t *testing.T) {
	id := clientID(1).String()
	for _, tt := range []struct {
		name string
		send []byte
		want wire.Code
	}{
		{"garbage", []byte("GET / HTTP/1.1\r\n\r\n"), wire.CodeBadVersion},
		{"version 0", []byte{0, 1, 0, 0}, wire.CodeBadVersion},
		{"version 3", []byte{3, 1, 0, 0}, wire.CodeBadVersion},
		{"unknown type", []byte{1, 0x7f, 0, 0}, wire.CodeBadFrame},
		{"length over the limit", []byte{1, 1, 0xff, 0xff}, wire.CodeFrameTooLarge},
		{"REQUEST before HELLO", frame(wire.TypeRequest, `{"id":1,"token":"6ba7b810-9dad-41d1-80b4-00c04fd430c8","service":"echo","body":1}`), wire.CodeAuthRequired},
		{"HEARTBEAT before HELLO", frame(wire.TypeHeartbeat, `{}`), wire.CodeAuthRequired},
		{"PROOF before HELLO", frame(wire.TypeProof, `{}`), wire.CodeAuthRequired},
		{"HELLO without client_id", frame(wire.TypeHello, `{}`), wire.CodeBadFrame},
		{"HELLO with a short client_id", frame(wire.TypeHello, `{"client_id":"abc"}`), wire.CodeBadFrame},
		{"HELLO in capitals", frame(wire.TypeHello, `{"client_id":"`+strings.Repeat("AB", 32)+`"}`), wire.CodeBadFrame},
		{"HELLO that is no JSON", frame(wire.TypeHello, `{"client_id":`), wire.CodeBadFrame},
		{"HELLO with half a token", frame(wire.TypeHello, `{"client_id":"`+id+`","token":"6ba7b810"}`), wire.CodeBadToken},
		{"HELLO with an unknown token", frame(wire.TypeHello, `{"client_id":"`+id+`","token":"6ba7b810-9dad-41d1-80b4-00c04fd430c8"}`), wire.CodeBadToken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				d := r.connect(t)
				d.write(tt.send)
				d.wantClosed(tt.want)
				if got := r.closed(string(tt.want)); got != 1 {
					t.Errorf("closed_total{reason=%q} = %v, want 1", tt.want, got)
				}
			})
		})
	}
}

func TestRefusalsOfAnOpenSession(t *testing.T) {
	other := `"token":"6ba7b810-9dad-41d1-80b4-00c04fd430c8"`
	for _, tt := range []struct {
		name string
		send func(d *device) []byte
		want wire.Code
	}{
		{"another version", func(*device) []byte { return []byte{2, 5, 0, 0} }, wire.CodeBadVersion},
		{"unknown type", func(*device) []byte { return []byte{1, 0, 0, 0} }, wire.CodeBadFrame},
		{"a second HELLO", func(d *device) []byte {
			return frame(wire.TypeHello, `{"client_id":"`+d.client.String()+`"}`)
		}, wire.CodeBadFrame},
		{"a gateway's frame", func(*device) []byte { return frame(wire.TypeResponse, `{"id":1,"body":1}`) }, wire.CodeBadFrame},
		{"PROOF out of order", func(*device) []byte { return frame(wire.TypeProof, `{}`) }, wire.CodeBadFrame},
		{"over the limit", func(*device) []byte { return []byte{1, 3, 0x40, 0x01} }, wire.CodeFrameTooLarge},
		{"REQUEST without token", func(*device) []byte { return frame(wire.TypeRequest, `{"id":1,"service":"echo","body":1}`) }, wire.CodeAuthRequired},
		{"HEARTBEAT without token", func(*device) []byte { return frame(wire.TypeHeartbeat, `{}`) }, wire.CodeAuthRequired},
		{"REQUEST with a wrong token", func(*device) []byte {
			return frame(wire.TypeRequest, `{"id":1,`+other+`,"service":"echo","body":1}`)
		}, wire.CodeBadToken},
		{"HEARTBEAT with a wrong token", func(*device) []byte { return frame(wire.TypeHeartbeat, `{`+other+`}`) }, wire.CodeBadToken},
		{"REQUEST that is no JSON", func(*device) []byte { return frame(wire.TypeRequest, `{"id":1`) }, wire.CodeBadFrame},
		{"REQUEST without body", func(d *device) []byte {
			return frame(wire.TypeRequest, `{"id":1,"token":"`+d.token.Text()+`","service":"echo"}`)
		}, wire.CodeBadFrame},
		{"PUSH_ACK that is no JSON", func(*device) []byte { return frame(wire.TypePushAck, `[]`) }, wire.CodeBadFrame},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				d := r.enrolled(t, clientID(1))
				d.write(tt.send(d))
				d.wantClosed(tt.want)
				if n := r.router.count(); n != 0 {
					t.Errorf("requests forwarded = %d, want 0", n)
				}
			})
		})
	}
}

func TestForeignTokenIsRefused(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		mine, yours := r.enrolled(t, clientID(1)), r.enrolled(t, clientID(2))
		mine.token = yours.token
		mine.request(1, `1`)
		mine.wantClosed(wire.CodeBadToken)
		yours.roundTrip(1)
		stranger := r.connect(t)
		stranger.send(&wire.Hello{ClientID: clientID(1), Token: yours.token})
		stranger.wantClosed(wire.CodeBadToken)
	})
}

func TestRequestIDTwiceInFlight(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		r.router.holding(true)
		d := r.enrolled(t, clientID(1))
		d.request(5, `"a"`)
		d.request(5, `"b"`)
		d.wantClosed(wire.CodeBadFrame)
		if n := r.router.count(); n != 1 {
			t.Errorf("requests forwarded = %d, want 1", n)
		}
	})
}

func TestRequestIDMayComeAgain(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		for range 3 {
			d.roundTrip(5)
		}
	})
}

func TestBackendErrorsAnswerTheirRequest(t *testing.T) {
	for _, code := range []wire.Code{wire.CodeNoSuchService, wire.CodeBackendUnavailable, wire.CodeBackendTimeout, wire.CodeBackendError} {
		t.Run(string(code), func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				shared := &wire.Error{Code: code, Message: "why"}
				r.router.err = shared
				d := r.enrolled(t, clientID(1))
				d.request(9, `1`)
				e := d.wantError(code)
				if !e.HasID || e.ID != 9 || e.Close || e.Message != "why" {
					t.Errorf("error = %+v, want id 9, close false and the message", e)
				}
				if shared.HasID {
					t.Error("the router's error was changed, want a copy")
				}
				r.router.err = nil
				d.roundTrip(10)
			})
		})
	}
}

// Names that devices make up must not become series.
func TestUnknownServicesShareOneLabel(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		for i, name := range []string{"a", "b", "c"} {
			d.send(&wire.Request{ID: uint32(i), Token: d.token, Service: name, Body: []byte(`1`)})
			d.wantError(wire.CodeNoSuchService)
		}
		families, err := r.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "service" && l.GetValue() != "echo" && l.GetValue() != unknownService {
						t.Errorf("%s has service=%q, want only echo and %s", f.GetName(), l.GetValue(), unknownService)
					}
				}
			}
		}
	})
}

func TestMaxInFlightStopsReading(t *testing.T) {
	doc := testDoc()
	doc.MaxInFlight = 2
	bubble(t, doc, func(t *testing.T, r *rig) {
		r.router.holding(true)
		d := r.enrolled(t, clientID(1))
		d.request(1, `1`)
		d.request(2, `2`)
		go func() { // blocks in the pipe until the gateway reads again
			b, _ := wire.Append(nil, wire.Version1, &wire.Request{ID: 3, Token: d.token, Service: "echo", Body: []byte(`3`)})
			_, _ = d.conn.Write(b)
		}()
		synctest.Wait()
		if n := r.router.count(); n != 2 {
			t.Fatalf("requests forwarded = %d, want 2", n)
		}
		// Neither silence nor missed heartbeats count while the gateway does not read.
		d.quiet(5 * time.Minute)
		r.router.answerAll()
		var resp wire.Response
		d.want(&resp)
		d.want(&resp)
		synctest.Wait()
		if n := r.router.answerAll(); n != 1 {
			t.Fatalf("requests forwarded after the answers = %d, want 1", n)
		}
		d.want(&resp)
		if resp.ID != 3 {
			t.Errorf("response id = %d, want 3", resp.ID)
		}
		d.quiet(30 * time.Second) // and the time that passed is not held against the device
	})
}

func TestByeEndsCleanly(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		d.send(&wire.Bye{})
		d.wantEnd()
		if got := r.closed(closedBye); got != 1 {
			t.Errorf("closed_total{bye} = %v, want 1", got)
		}
		time.Sleep(2 * releaseEvery)
		synctest.Wait()
		if n := r.auth.releasedCount(); n != 1 {
			t.Errorf("sessions released = %d, want 1", n)
		}
		early := r.connect(t)
		early.send(&wire.Bye{})
		early.wantEnd()
	})
}

// A frame that was cut is never forwarded, wherever the cut is (RELIABILITY row 5).
func TestCutFramesAreNotForwarded(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		whole := func(d *device) []byte {
			b, err := wire.Append(nil, wire.Version1, &wire.Request{ID: 1, Token: d.token, Service: "echo", Body: []byte(`{"hello":"world"}`)})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		size := len(whole(&device{token: newToken()}))
		for cut := range size {
			d := r.enrolled(t, clientID(1))
			if cut > 0 {
				d.write(whole(d)[:cut])
			}
			_ = d.conn.Close()
			synctest.Wait()
		}
		if n := r.router.count(); n != 0 {
			t.Errorf("requests forwarded = %d, want 0", n)
		}
		if got := r.closed(closedEOF); got != float64(size) {
			t.Errorf("closed_total{eof} = %v, want %d", got, size)
		}
	})
}

// A fault of ours costs one device its connection, and tells where to look.
func TestFaultIsInternal(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d, other := r.enrolled(t, clientID(1)), r.enrolled(t, clientID(2))
		r.Server.requests.pool.New = func() any { panic("a fault") }
		r.Server.log = zapNop()
		d.request(1, `1`)
		e := d.wantClosed(wire.CodeInternal)
		if !strings.Contains(e.Message, "logged as ") {
			t.Errorf("message = %q, want the id of a log line", e.Message)
		}
		r.Server.requests.pool.New = nil
		other.roundTrip(1)
	})
}

func TestAllowlistAndMTLSRefusalsAreHandedOn(t *testing.T) {
	doc := testDoc()
	doc.Enrolment = dynamic.EnrolKey
	bubble(t, doc, func(t *testing.T, r *rig) {
		r.auth.needKey = true
		d := r.connect(t)
		d.send(&wire.Hello{ClientID: clientID(3)})
		var c wire.Challenge
		d.want(&c)
		d.send(&wire.Proof{Proof: wire.ProofOf(wire.DeviceKey(groupKey, clientID(3)), c.Nonce, [32]byte{}, clientID(3))})
		d.want(&d.welcome) // a plain connection binds to 32 zero bytes
		d.token = d.welcome.Token
		d.roundTrip(1)

		liar := r.connect(t)
		liar.send(&wire.Hello{ClientID: clientID(4)})
		liar.want(&c)
		liar.send(&wire.Proof{Proof: [32]byte{1}})
		liar.wantClosed(wire.CodeBadProof)

		mute := r.connect(t)
		mute.send(&wire.Hello{ClientID: clientID(5)})
		mute.want(&c)
		begun := time.Now()
		mute.wantClosed(wire.CodeAuthTimeout)
		if took := time.Since(begun); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("no PROOF was closed after %v, want 5 s", took)
		}

		wrong := r.connect(t)
		wrong.send(&wire.Hello{ClientID: clientID(6)})
		wrong.want(&c)
		wrong.send(&wire.Heartbeat{})
		wrong.wantClosed(wire.CodeBadFrame)
	})
}
