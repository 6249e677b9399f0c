package client_test

// Pushes: delivered in order, acknowledged once handled, never in the way of answers.

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

func TestPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		cfg := g.config()
		arrived, handled := make(chan client.Push, 1), make(chan struct{})
		cfg.OnPush = func(p client.Push) { arrived <- p; <-handled }
		c, p := g.connect(cfg, newToken(t))
		defer c.Close()
		p.send(&wire.Push{ID: 7, Service: "alerts", Body: []byte(`{"level": 3}`)})
		if got := <-arrived; got.Service != "alerts" || string(got.Body) != `{"level": 3}` {
			t.Errorf("OnPush: got %s %s", got.Service, got.Body)
		}
		// While it is handled, requests are answered, and there is no ack.
		a := ask(t.Context(), c, `1`)
		p.echo()
		a.expectAnswer(t, `1`)
		close(handled)
		if ack := expect[*wire.PushAck](p); ack.ID != 7 {
			t.Errorf("PUSH_ACK: got %d, want 7", ack.ID)
		}
	})
}

func TestPushHandlerMayRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		cfg := g.config()
		var c *client.Client
		ready := make(chan struct{})
		cfg.OnPush = func(p client.Push) {
			<-ready
			if body, err := c.Request(t.Context(), "echo", p.Body); err != nil || string(body) != string(p.Body) {
				t.Errorf("Request in OnPush: got %s, %v", body, err)
			}
		}
		c, p := g.connect(cfg, newToken(t))
		defer c.Close()
		close(ready)
		p.send(&wire.Push{ID: 1, Service: "alerts", Body: []byte(`"x"`)})
		p.echo()
		expect[*wire.PushAck](p)
	})
}

// A device that is slow with pushes does not acknowledge what it never saw.
func TestTooManyPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		cfg := g.config()
		handled := make(chan struct{})
		var seen []string
		cfg.OnPush = func(p client.Push) { <-handled; seen = append(seen, string(p.Body)) }
		c, p := g.connect(cfg, newToken(t))
		defer c.Close()
		const sent = 40
		for i := range uint32(sent) {
			p.send(&wire.Push{ID: i, Service: "s", Body: fmt.Append(nil, i)})
			synctest.Wait() // the first one is being handled, sixteen wait
		}
		close(handled)
		for i := range uint32(17) {
			if ack := expect[*wire.PushAck](p); ack.ID != i {
				t.Errorf("ack %d: got %d", i, ack.ID)
			}
		}
		a := ask(t.Context(), c, `"no more acks come before this"`)
		p.echo()
		a.expectAnswer(t, `"no more acks come before this"`)
		if len(seen) != 17 || seen[16] != "16" {
			t.Errorf("OnPush: got %v, want 0 to 16", seen)
		}
	})
}

func TestPushWithoutHandlerIsNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		c, p := g.connect(g.config(), newToken(t))
		defer c.Close()
		p.send(&wire.Push{ID: 1, Service: "alerts", Body: []byte(`1`)})
		synctest.Wait()
		a := ask(t.Context(), c, `"no ack comes before this"`)
		p.echo()
		a.expectAnswer(t, `"no ack comes before this"`)
	})
}
