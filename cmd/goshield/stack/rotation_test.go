package stack

// Tokens that are replaced, end to end: RELIABILITY rows 40, 41 and 45.

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// ask makes a request, which must be answered.
func (d *rawDevice) ask(id uint32, token wire.Token) {
	d.t.Helper()
	d.send(&wire.Request{ID: id, Token: token, Service: "echo", Body: []byte(`"still here"`)})
	var r wire.Response
	d.want(&r)
}

// Row 40: the device never sees the ack that brings its new token. The old one goes on working, here and on the
// gateway that it comes to next, and the new one arrives with a later ack.
func TestLostAck(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		f := start(t, quickDocument(), redis)
		id := f.device(t, nil).ClientID
		d := f.raw(t)
		token := d.hello(id, wire.Token{}).Token
		lost := d.rotate(token)
		d.ask(1, token)
		if again := d.rotate(token); again != lost {
			t.Error("a later ack brings another token than the one that was lost, want the same until it is used")
		}
		d.send(&wire.Heartbeat{Token: token})
		_ = d.conn.Close() // and with it the ack
		d = f.raw(t)
		if w := d.hello(id, token); w.Token != token {
			t.Error("WELCOME brings another token, want the one that was presented")
		}
		d.ask(1, token)
		next := d.rotate(token)
		d.ask(2, next)
		if d.rotate(next) == next {
			t.Error("the successor of the new token is itself")
		}
	})
}

// Row 41: a device loses power before it used its new token. Whatever its memory holds when it is back, it goes on
// without enrolling.
func TestRestartBeforeNewTokenIsUsed(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		f := start(t, quickDocument(), redis)
		for _, tt := range []struct {
			name   string
			stored func(old, next wire.Token) client.Tokens
			// forgotten: another connection has had a successor made meanwhile, in place of next.
			forgotten bool
		}{
			{"the new token was not stored", func(old, _ wire.Token) client.Tokens { return client.Tokens{Current: old} }, false},
			{"both are stored", func(old, next wire.Token) client.Tokens { return client.Tokens{Current: next, Previous: old} }, false},
			{"both are stored, and the new one is forgotten", func(old, next wire.Token) client.Tokens { return client.Tokens{Current: next, Previous: old} }, true},
		} {
			t.Run(tt.name, func(t *testing.T) {
				cfg := f.device(t, client.MemoryStore())
				d := f.raw(t)
				old := d.hello(cfg.ClientID, wire.Token{}).Token
				next := d.rotate(old)
				_ = d.conn.Close()
				if tt.forgotten {
					d = f.raw(t)
					d.hello(cfg.ClientID, old)
					if d.rotate(old) == next {
						t.Fatal("a new connection is handed the same successor, want another")
					}
					_ = d.conn.Close()
				}
				tokens := tt.stored(old, next)
				tokens.ExpiresAt = time.Now().Add(time.Hour)
				if err := cfg.TokenStore.Save(cfg.ClientID, tokens); err != nil {
					t.Fatal(err)
				}
				var enrolled atomic.Bool
				cfg.Hooks.OnConnect = func(c client.Connected) { enrolled.Store(enrolled.Load() || c.Enrolled) }
				c := dial(t, cfg)
				defer c.Close()
				if _, err := c.Request(t.Context(), "echo", []byte(`1`)); err != nil {
					t.Errorf("request = %v, want an answer", err)
				}
				if enrolled.Load() {
					t.Error("the device enrolled anew, want it to go on with a token that it holds")
				}
			})
		}
	})
}

// Row 45: a connection outlives its tokens as long as they are rotated.
func TestRotationOutlivesTheToken(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		t.Parallel()                                       // it waits most of the time
		const ttl, left = 8 * time.Second, 2 * time.Second // left: on a busy machine, for a round trip
		doc := quickDocument()
		doc.Token.TTL, doc.Token.Grace = dynamic.Duration(ttl), dynamic.Duration(left)
		f := start(t, doc, redis)
		d := f.raw(t)
		w := d.hello(f.device(t, nil).ClientID, wire.Token{})
		token, rotated := w.Token, 0
		beat := time.NewTicker(200 * time.Millisecond)
		defer beat.Stop()
		for first := time.Now().Add(ttl + left); time.Now().Before(first); <-beat.C {
			d.send(&wire.Heartbeat{Token: token})
			var ack wire.HeartbeatAck
			d.want(&ack)
			if !ack.Token.IsZero() {
				token, rotated = ack.Token, rotated+1
			}
		}
		d.ask(1, token)
		if token == w.Token || rotated == 0 {
			t.Error("the first token still serves after its end")
		}
	})
}
