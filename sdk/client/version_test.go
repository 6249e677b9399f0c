package client_test

// Version 2: everything in Protocol Buffers, bodies of any bytes.

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

func TestVersion2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		cfg.Version = wire.Version2
		pushed := make(chan client.Push, 1)
		cfg.OnPush = func(p client.Push) { pushed <- p }
		c, p := g.connect(cfg, token, func(w *wire.Welcome) { w.Heartbeat = time.Second })
		defer c.Close()
		if p.version != wire.Version2 {
			t.Errorf("HELLO: got version %d, want 2", p.version)
		}
		body := "\x00\xff no JSON"
		a := ask(t.Context(), c, body)
		if req := p.expectRequest(); string(req.Body) != body || req.Token != token || p.version != wire.Version2 {
			t.Errorf("REQUEST: got body %q, version %d", req.Body, p.version)
		} else {
			p.send(&wire.Response{ID: req.ID, Body: req.Body})
		}
		a.expectAnswer(t, body)
		p.send(&wire.Push{ID: 9, Service: "alerts", Body: []byte{0xfe}})
		if got := <-pushed; !bytes.Equal(got.Body, []byte{0xfe}) {
			t.Errorf("push: got %q", got.Body)
		}
		if ack := expect[*wire.PushAck](p); ack.ID != 9 {
			t.Errorf("PUSH_ACK: got %d, want 9", ack.ID)
		}
		if beat := expect[*wire.Heartbeat](p); beat.Token != token {
			t.Error("HEARTBEAT: another token")
		}
	})
}

// A gateway that refuses the connection before it has read its version answers in
// version 1.
func TestVersion2IsRefusedInVersion1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		cfg := g.config()
		cfg.Version = wire.Version2
		d := dialInBackground(cfg)
		p := g.accept()
		expect[*wire.Hello](p)
		p.version = wire.Version1
		p.send(wire.Errorf(wire.CodeOverloaded, "try another"))
		if <-d.done; !errors.Is(d.err, &wire.Error{Code: wire.CodeOverloaded}) {
			t.Errorf("got %v, want overloaded", d.err)
		}
	})
}
