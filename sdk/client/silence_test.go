package client_test

// Gateways that fall silent: how a device finds out, and what it does not take for silence.

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// A gateway that says nothing any more is given up ten seconds after a heartbeat.
func TestSilentGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		ended := make(chan error, 1)
		cfg.Hooks.OnDisconnect = func(err error) { ended <- err }
		c, p := g.connect(cfg, token, withHeartbeat(4*time.Second))
		defer c.Close()
		expect[*wire.Heartbeat](p)
		p.send(&wire.HeartbeatAck{})
		expect[*wire.Heartbeat](p)
		start := time.Now()
		p.expectEnd() // more heartbeats come, and do not put it off
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("given up after %v, want 10s", took)
		}
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "acknowledged") {
			t.Errorf("OnDisconnect: got %v", err)
		}
		hello := g.accept().welcome(token)
		expectToken(t, "HELLO", hello.Token, token)
	})
}

// A gateway that says nothing any more while a request waits is asked by a heartbeat, and given up soon: in a failover
// TCP alone took up to 25 s to learn that the balancer behind the virtual address is another.
func TestSilenceWhileARequestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, p := g.connect(g.config(), token, withHeartbeat(20*time.Second))
		defer c.Close()
		start := time.Now()
		a := ask(t.Context(), c, `1`)
		expect[*wire.Request](p)
		expect[*wire.Heartbeat](p)
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("heartbeat after %v, want 2s", took)
		}
		b := ask(t.Context(), c, `2`) // does not put it off
		expect[*wire.Request](p)
		p.expectEnd()
		if took := time.Since(start); took != 6*time.Second {
			t.Errorf("given up after %v, want 6s", took)
		}
		for _, a := range []*asking{a, b} {
			if _, err := a.wait(); !errors.Is(err, client.ErrConnectionLost) {
				t.Errorf("request: got %v, want ErrConnectionLost", err)
			}
		}
		g.accept().welcome(token)
		if took := time.Since(start); took > 7*time.Second {
			t.Errorf("next connection after %v, want the back-off's half second after 6s", took)
		}
	})
}

// A connection that leads nowhere when it has just been made, as through a balancer that loses the virtual address
// then, is not waited for until the whole attempt has run out of time.
func TestSilenceWhileConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		cfg.KeepDialing = true
		d := dialInBackground(cfg)
		start := time.Now()
		expect[*wire.Hello](g.accept())
		g.accept().welcome(token)
		if took := time.Since(start); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("next connection after %v, want 5s and the back-off", took)
		}
		_ = d.wait(t).Close()
	})
}

// A service that takes long does not cost the connection, nor a flood of heartbeats: the acks tell that it lives.
func TestServiceThatTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		cfg := g.config()
		cfg.RequestTimeout = time.Minute
		c, p := g.connect(cfg, newToken(t), withHeartbeat(20*time.Second))
		defer c.Close()
		start := time.Now()
		a := ask(t.Context(), c, `1`)
		req := expect[*wire.Request](p)
		beats := 0
		for time.Since(start) < 30*time.Second {
			expect[*wire.Heartbeat](p)
			p.send(&wire.HeartbeatAck{})
			beats++
		}
		if beats > 6 { // after 2, 4, 8, 16, 32 s
			t.Errorf("heartbeats: got %d, want 6 at most", beats)
		}
		p.send(&wire.Response{ID: req.ID, Body: []byte(`2`)})
		a.expectAnswer(t, `2`)
		if n := len(g.attempts()); n != 1 {
			t.Errorf("connections: got %d, want 1", n)
		}
	})
}

// With as many requests in flight as may be the gateway stops reading, so that silence tells nothing.
func TestSilenceWithAllRequestsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		cfg := g.config()
		cfg.MaxInFlight = 1
		c, p := g.connect(cfg, newToken(t), withHeartbeat(20*time.Second))
		defer c.Close()
		a := ask(t.Context(), c, `1`)
		req := expect[*wire.Request](p)
		if m, err := p.nextWithin(9 * time.Second); err == nil {
			t.Errorf("got %s, want nothing", m.Type())
		}
		p.send(&wire.Response{ID: req.ID, Body: []byte(`2`)})
		a.expectAnswer(t, `2`)
	})
}

// A gateway that takes no bytes any more is given up after the write deadline.
func TestGatewayThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, _ := g.connect(g.config(), token)
		defer c.Close()
		start := time.Now()
		a := ask(t.Context(), c, `1`)
		if _, err := a.wait(); !errors.Is(err, client.ErrConnectionLost) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("request: got %v", err)
		}
		g.accept().welcome(token)
		if took := time.Since(start); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("next connection after %v, want 10s and the back-off", took)
		}
	})
}
