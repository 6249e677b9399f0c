package client_test

// Moving to another gateway: no request fails, none is sent twice (RELIABILITY rows 23 and 24).

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

func TestGoaway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, old := g.connect(g.config(), token, withHeartbeat(2*time.Second))
		defer c.Close()
		time.Sleep(time.Second) // within the first interval
		old.send(&wire.Goaway{Reason: "draining", After: 5 * time.Second})
		sent := time.Now()
		// Until then nothing changes.
		early := ask(t.Context(), c, `"early"`)
		old.echo()
		early.expectAnswer(t, `"early"`)
		slow := ask(t.Context(), c, `"slow"`)
		slowReq := old.expectRequest()

		// The old connection goes on while the new one is made: heartbeats are answered.
		var beats sync.WaitGroup
		beats.Go(func() {
			for {
				m, err := old.next()
				if err != nil {
					return
				}
				if m.Type() != wire.TypeHeartbeat {
					t.Errorf("the old connection got %s", m.Type())
				}
				old.send(&wire.HeartbeatAck{})
			}
		})
		next := g.accept()
		if wait := time.Since(sent); wait < 5*time.Second || wait > 5100*time.Millisecond {
			t.Errorf("dialled after %v, want 5s", wait)
		}
		hello := next.welcome(token)
		expectToken(t, "HELLO", hello.Token, token)
		a := ask(t.Context(), c, `"new"`)
		if req := next.echo(); string(req.Body) != `"new"` {
			t.Errorf("the new connection got %s", req.Body)
		}
		a.expectAnswer(t, `"new"`)

		// The old one ends once it has answered what was in flight.
		old.send(&wire.Response{ID: slowReq.ID, Body: slowReq.Body})
		slow.expectAnswer(t, `"slow"`)
		beats.Wait()
	})
}

// Nothing new is sent on the old connection once HELLO is on its way, and HELLO waits for
// what is in flight there.
func TestHelloWaitsForCallsOnOldConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, old := g.connect(g.config(), token)
		defer c.Close()
		a := ask(t.Context(), c, `"in flight"`)
		req := old.expectRequest()
		old.send(&wire.Goaway{})
		next := g.accept()
		time.Sleep(100 * time.Millisecond)
		waits := ask(t.Context(), c, `"waits"`)
		synctest.Wait()
		hello := make(chan time.Time, 1)
		go func() {
			next.welcome(token)
			hello <- time.Now()
			next.echo()
		}()
		time.Sleep(50 * time.Millisecond)
		if len(hello) != 0 {
			t.Error("HELLO came while a request was in flight")
		}
		answered := time.Now()
		old.send(&wire.Response{ID: req.ID, Body: req.Body})
		a.expectAnswer(t, `"in flight"`)
		if at := <-hello; !at.Equal(answered) {
			t.Errorf("HELLO came %v after the answer, want at once", at.Sub(answered))
		}
		waits.expectAnswer(t, `"waits"`)
		old.expectEnd()
	})
}

// New tokens are not taken from a connection that is being left: the next HELLO may be on its way.
func TestNoRotationWhileLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, first, second := newFakeGateway(t), newToken(t), newToken(t)
		c, old := g.connect(g.config(), first, withHeartbeat(time.Second))
		defer c.Close()
		old.send(&wire.Goaway{After: 1500 * time.Millisecond})
		expect[*wire.Heartbeat](old)
		old.send(&wire.HeartbeatAck{Token: second, ExpiresAt: time.Now().Add(time.Hour)})
		hello := g.accept().welcome(first)
		expectToken(t, "HELLO", hello.Token, first)
	})
}

// A request that came too late for a gateway was not carried out: it goes to the
// next one, unnoticed.
func TestShuttingDownIsRetried(t *testing.T) {
	for _, test := range []struct {
		name   string
		goaway bool
	}{{"after GOAWAY", true}, {"without one", false}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, token := newFakeGateway(t), newToken(t)
				c, old := g.connect(g.config(), token)
				defer c.Close()
				if test.goaway {
					old.send(&wire.Goaway{After: time.Minute})
				}
				start := time.Now()
				asked := []*asking{ask(t.Context(), c, `"a"`), ask(t.Context(), c, `"b"`)}
				for _, req := range []*wire.Request{old.expectRequest(), old.expectRequest()} {
					e := wire.Errorf(wire.CodeShuttingDown, "too late")
					e.ID, e.HasID = req.ID, true
					old.send(e)
				}
				next := g.accept()
				next.welcome(token)
				bodies := string(next.echo().Body) + string(next.echo().Body)
				if bodies != `"a""b"` && bodies != `"b""a"` {
					t.Errorf("the next gateway got %s, want both", bodies)
				}
				asked[0].expectAnswer(t, `"a"`)
				asked[1].expectAnswer(t, `"b"`)
				if took := time.Since(start); took > time.Second {
					t.Errorf("it took %v, want it at once", took)
				}
				old.expectEnd()
			})
		})
	}
}

// While no other gateway lets it in, the device goes on with the old connection.
func TestGoawayWithNowhereToGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, old := g.connect(g.config(), token)
		defer c.Close()
		old.send(&wire.Goaway{})
		next := g.accept()
		expect[*wire.Hello](next)
		next.send(&wire.Error{Code: wire.CodeOverloaded, RetryAfter: time.Minute, Close: true})
		synctest.Wait()
		a := ask(t.Context(), c, `1`)
		old.echo()
		a.expectAnswer(t, `1`)
		time.Sleep(time.Minute)
		next = g.accept()
		next.welcome(token)
		a = ask(t.Context(), c, `2`)
		next.echo()
		a.expectAnswer(t, `2`)
		old.expectEnd()
	})
}

// The connection breaks before the time to go: that is an ordinary loss.
func TestConnectionBreaksAfterGoaway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, old := g.connect(g.config(), token)
		defer c.Close()
		old.send(&wire.Goaway{After: time.Hour})
		a := ask(t.Context(), c, `1`)
		old.expectRequest()
		start := time.Now()
		old.close()
		if _, err := a.wait(); !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("request: got %v, want ErrConnectionLost", err)
		}
		next := g.accept()
		next.welcome(token)
		if took := time.Since(start); took > time.Second {
			t.Errorf("next connection after %v", took)
		}
	})
}

// A request that is never answered does not keep the old connection for ever.
func TestOldConnectionNeverFinishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		cfg.RequestTimeout = time.Hour
		c, old := g.connect(cfg, token)
		defer c.Close()
		a := ask(t.Context(), c, `"never answered"`)
		old.expectRequest()
		old.send(&wire.Goaway{})
		next := g.accept()
		next.welcome(token)
		start := time.Now()
		old.expectEnd()
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("the old connection ended after %v, want 30s", took)
		}
		if _, err := a.wait(); !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("its request: got %v, want ErrConnectionLost", err)
		}
	})
}

// After a connection that lasted, back-off begins anew with GOAWAY too.
func TestGoawayAfterLongConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		cfg.BackoffBase, cfg.BackoffCap = 10*time.Millisecond, 10*time.Hour
		c, p := g.connect(cfg, token)
		defer c.Close()
		g.setRefuse(errors.New("connection refused"))
		p.close()
		time.Sleep(time.Hour) // waits of hours by now
		g.setRefuse(nil)
		select {
		case p = <-g.peers:
		case <-time.After(24 * time.Hour):
			t.Fatal("no connection came")
		}
		p.welcome(token)
		time.Sleep(time.Minute)
		p.send(&wire.Goaway{})
		next := g.accept()
		expect[*wire.Hello](next)
		start := time.Now()
		next.send(wire.Errorf(wire.CodeOverloaded, ""))
		g.accept().welcome(token)
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("next attempt after %v, want at most 10ms", took)
		}
	})
}

// What the old connection says late, taken_over even, ends nothing.
func TestOldConnectionIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, old := g.connect(g.config(), token)
		defer c.Close()
		a := ask(t.Context(), c, `"never answered"`)
		old.expectRequest()
		old.send(&wire.Goaway{})
		next := g.accept()
		next.welcome(token)
		old.send(wire.Errorf(wire.CodeTakenOver, "a newer connection"))
		if _, err := a.wait(); !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("a request on the old connection: got %v, want ErrConnectionLost", err)
		}
		a = ask(t.Context(), c, `1`)
		next.echo()
		a.expectAnswer(t, `1`)
		if c.Err() != nil {
			t.Errorf("Err: got %v, want none", c.Err())
		}
	})
}

// Gateways that send a device to and fro do not make it spin.
func TestGoawayWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		cfg.BackoffBase, cfg.BackoffCap = 500*time.Millisecond, 30*time.Second
		c, p := g.connect(cfg, token)
		gateways := make(chan struct{})
		go func() {
			defer close(gateways)
			p.send(&wire.Goaway{})
			for p := range g.peers {
				p.welcome(token)
				p.send(&wire.Goaway{})
			}
		}()
		time.Sleep(10 * time.Minute)
		if n := len(g.attempts()); n < 10 || n > 120 {
			t.Errorf("connections in ten minutes: got %d, want some tens", n)
		}
		c.Close()
		close(g.peers)
		<-gateways
	})
}

// Requests go on, many at once, while the device is sent from gateway to
// gateway: all are answered, each is carried out once.
func TestGoawayUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const moves, askers, each = 5, 8, 200
		g, token := newFakeGateway(t), newToken(t)
		var mu sync.Mutex
		carriedOut := make(map[string]int)
		gateway := func(p *peer, last bool) {
			p.welcome(token)
			var goaway <-chan time.Time
			if !last {
				goaway = time.After(300 * time.Millisecond)
			}
			var deadline time.Time
			for {
				m, err := p.next()
				if err != nil {
					return
				}
				req, ok := m.(*wire.Request)
				if !ok {
					continue
				}
				if !deadline.IsZero() && time.Now().After(deadline) {
					e := wire.Errorf(wire.CodeShuttingDown, "too late")
					e.ID, e.HasID = req.ID, true
					p.send(e)
					continue
				}
				mu.Lock()
				carriedOut[string(req.Body)]++
				mu.Unlock()
				p.send(&wire.Response{ID: req.ID, Body: req.Body})
				select {
				case <-goaway:
					p.send(&wire.Goaway{After: 50 * time.Millisecond})
					deadline = time.Now().Add(20 * time.Millisecond) // the device's clock is late
				default:
				}
			}
		}
		var gateways sync.WaitGroup
		gateways.Go(func() {
			for i := range moves + 1 {
				p := g.accept()
				gateways.Go(func() { gateway(p, i == moves) })
			}
		})
		c, err := client.Dial(t.Context(), g.config())
		if err != nil {
			t.Fatal(err)
		}
		var asking sync.WaitGroup
		for i := range askers {
			asking.Go(func() {
				for j := range each {
					body := fmt.Sprintf(`"%d/%d"`, i, j)
					if got, err := c.Request(t.Context(), "echo", []byte(body)); err != nil || string(got) != body {
						t.Errorf("%s: got %s, %v", body, got, err)
					}
					time.Sleep(11 * time.Millisecond)
				}
			})
		}
		asking.Wait()
		c.Close()
		gateways.Wait()
		if len(carriedOut) != askers*each {
			t.Errorf("carried out: got %d, want %d", len(carriedOut), askers*each)
		}
		for body, n := range carriedOut {
			if n != 1 {
				t.Errorf("%s was carried out %d times", body, n)
			}
		}
		if n := len(g.attempts()); n != moves+1 {
			t.Errorf("connections: got %d, want %d", n, moves+1)
		}
	})
}
