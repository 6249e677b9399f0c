package client_test

// A connection's life: heartbeats, garbage, the end, and the next one.

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

func TestHeartbeatsKeepTheirInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 20 * time.Second
		g := newFakeGateway(t)
		c, p := g.connect(g.config(), newToken(t), withHeartbeat(interval))
		defer c.Close()
		last, shortest, longest := time.Now(), time.Hour, time.Duration(0)
		for range 50 {
			for {
				m, err := p.nextWithin(interval + time.Second)
				if err != nil {
					t.Fatalf("no heartbeat after %v: %v", time.Since(last), err)
				}
				if m.Type() == wire.TypeHeartbeat {
					break
				}
			}
			gap := time.Since(last)
			shortest, longest, last = min(shortest, gap), max(longest, gap), time.Now()
			p.send(&wire.HeartbeatAck{})
		}
		if shortest < interval*9/10 || longest > interval {
			t.Errorf("intervals: got %v to %v, want within a tenth below %v", shortest, longest, interval)
		}
		if longest-shortest < interval/100 {
			t.Errorf("intervals: got %v to %v, want some jitter", shortest, longest)
		}
	})
}

// nextWithin is next with another limit than patience.
func (p *peer) nextWithin(d time.Duration) (wire.Message, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(d))
	f, err := p.r.Next()
	if err != nil {
		return nil, err
	}
	if f.Type == wire.TypeHeartbeat {
		return &wire.Heartbeat{}, nil
	}
	return &wire.Bye{}, nil
}

func TestNoHeartbeatsWhereNoneAreWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		c, p := g.connect(g.config(), newToken(t), withHeartbeat(0))
		defer c.Close()
		if m, err := p.nextWithin(time.Hour); err == nil {
			t.Errorf("got %s, want nothing", m.Type())
		}
		if n := len(g.attempts()); n != 1 {
			t.Errorf("connections: got %d, want 1", n)
		}
	})
}

func TestErrorThatCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		var seen []wire.Code
		cfg.Hooks.OnError = func(e *wire.Error) { seen = append(seen, e.Code) }
		ended := make(chan error, 1)
		cfg.Hooks.OnDisconnect = func(err error) { ended <- err }
		c, p := g.connect(cfg, token)
		defer c.Close()
		a := ask(t.Context(), c, `1`)
		p.expectRequest()
		p.send(&wire.Error{Code: wire.CodeRateLimited, Message: "this one is about no request and closes nothing"})
		p.send(wire.Errorf(wire.CodeKicked, "by the operator"))
		_, err := a.wait()
		if !errors.Is(err, client.ErrConnectionLost) || code(err) != wire.CodeKicked {
			t.Errorf("request: got %v, want ErrConnectionLost because of kicked", err)
		}
		if err := <-ended; code(err) != wire.CodeKicked {
			t.Errorf("OnDisconnect: got %v, want kicked", err)
		}
		hello := g.accept().welcome(token)
		expectToken(t, "HELLO", hello.Token, token)
		if len(seen) != 2 || seen[0] != wire.CodeRateLimited || seen[1] != wire.CodeKicked {
			t.Errorf("OnError: got %v", seen)
		}
	})
}

func TestGarbageFromGateway(t *testing.T) {
	frame := func(m wire.Message) []byte {
		b, err := wire.Append(nil, wire.Version1, m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	token := newToken(t)
	for name, garbage := range map[string][]byte{
		"another protocol":      []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"version 2":             {2, byte(wire.TypeResponse), 0, 0},
		"unknown type":          {1, 0x7f, 0, 0},
		"payload of no JSON":    {1, byte(wire.TypeResponse), 0, 3, 'x', 'y', 'z'},
		"response without body": append([]byte{1, byte(wire.TypeResponse), 0, 8}, `{"id":1}`...),
		"ack of half a token":   append([]byte{1, byte(wire.TypeHeartbeatAck), 0, 16}, `{"expires_at":5}`...),
		"a device's frame":      frame(&wire.Heartbeat{Token: token}),
		"second WELCOME":        frame(&wire.Welcome{Token: token, ExpiresAt: time.Now()}),
		"late CHALLENGE":        frame(&wire.Challenge{}),
		"broken ERROR":          append([]byte{1, byte(wire.TypeError), 0, 2}, `{}`...),
		"broken GOAWAY":         append([]byte{1, byte(wire.TypeGoaway), 0, 2}, `[]`...),
		"broken PUSH":           append([]byte{1, byte(wire.TypePush), 0, 8}, `{"id":1}`...),
	} {
		t.Run("after WELCOME/"+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGateway(t)
				cfg := g.config()
				ended := make(chan error, 1)
				cfg.Hooks.OnDisconnect = func(err error) { ended <- err }
				c, p := g.connect(cfg, token)
				defer c.Close()
				p.sendRaw(garbage)
				err := <-ended
				if !errors.Is(err, client.ErrProtocol) || code(err) != "" {
					t.Errorf("got %v, want ErrProtocol and no code of the gateway's", err)
				}
				p.expectEnd()
				a := ask(t.Context(), c, `1`)
				p = g.accept()
				p.welcome(token)
				p.echo()
				a.expectAnswer(t, `1`)
			})
		})
	}
	for name, garbage := range map[string][]byte{
		"another protocol":     []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"RESPONSE":             frame(&wire.Response{ID: 1, Body: []byte(`1`)}),
		"WELCOME of no token":  append([]byte{1, byte(wire.TypeWelcome), 0, 16}, `{"expires_at":5}`...),
		"broken CHALLENGE":     append([]byte{1, byte(wire.TypeChallenge), 0, 2}, `{}`...),
		"broken ERROR":         append([]byte{1, byte(wire.TypeError), 0, 2}, `{}`...),
		"the end of the world": nil,
		"half a WELCOME":       frame(&wire.Welcome{Token: token, ExpiresAt: time.Now()})[:20],
	} {
		t.Run("instead of WELCOME/"+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGateway(t)
				d := dialInBackground(g.config())
				p := g.accept()
				expect[*wire.Hello](p)
				if len(garbage) > 0 {
					p.sendRaw(garbage)
				}
				p.close()
				<-d.done
				ends := errors.Is(d.err, io.EOF) || errors.Is(d.err, io.ErrUnexpectedEOF)
				if !errors.Is(d.err, client.ErrProtocol) && !ends {
					t.Errorf("Dial: got %v, want ErrProtocol", d.err)
				}
			})
		})
	}
}

func TestTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		c, p := g.connect(g.config(), newToken(t))
		defer c.Close()
		p.send(wire.Errorf(wire.CodeTakenOver, "a newer connection"))
		<-c.Done()
		if code(c.Err()) != wire.CodeTakenOver {
			t.Errorf("Err: got %v, want taken_over", c.Err())
		}
		if _, err := c.Request(t.Context(), "echo", []byte(`1`)); code(err) != wire.CodeTakenOver {
			t.Errorf("Request: got %v, want taken_over", err)
		}
		time.Sleep(time.Hour)
		if n := len(g.attempts()); n != 1 {
			t.Errorf("connections: got %d, want no second one", n)
		}
	})
}

func TestTakenOverReconnectsIfWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		cfg.ReconnectTakenOver = true
		c, p := g.connect(cfg, token)
		defer c.Close()
		p.send(wire.Errorf(wire.CodeTakenOver, "a newer connection"))
		g.accept().welcome(token)
		if c.Err() != nil {
			t.Errorf("Err: got %v, want none", c.Err())
		}
	})
}

// The device took over from itself: an attempt whose answer never came was let in after the one that
// followed it. That must not end the device.
func TestTakenOverByOwnStrayAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, p := g.connect(g.config(), token)
		defer c.Close()
		p.close()
		stray := g.accept()
		expect[*wire.Hello](stray)
		time.Sleep(client.DefaultConnectTimeout) // no answer: the device tries again
		p = g.accept()
		p.welcome(token)
		p.send(wire.Errorf(wire.CodeTakenOver, "a newer connection"))
		p = g.accept()
		p.welcome(token)
		a := ask(t.Context(), c, `1`)
		p.echo()
		a.expectAnswer(t, `1`)
	})
}

func TestDialFails(t *testing.T) {
	refused := errors.New("connection refused")
	for _, test := range []struct {
		name string
		play func(g *fakeGateway) // the gateway's part
		want func(err error) bool
		took time.Duration
	}{
		{"refused", func(g *fakeGateway) { g.setRefuse(refused) }, func(err error) bool { return errors.Is(err, refused) }, 0},
		{"no WELCOME", func(g *fakeGateway) { expect[*wire.Hello](g.accept()) },
			func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, 5 * time.Second},
		{"does not read", func(g *fakeGateway) { g.accept() },
			func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }, 5 * time.Second},
		{"unknown_client", func(g *fakeGateway) {
			p := g.accept()
			expect[*wire.Hello](p)
			p.send(wire.Errorf(wire.CodeUnknownClient, "not registered"))
		}, func(err error) bool { return code(err) == wire.CodeUnknownClient }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGateway(t)
				cfg := g.config()
				failed := 0
				cfg.Hooks.OnConnectFailed = func(error) { failed++ }
				start := time.Now()
				if test.name == "refused" {
					test.play(g)
				}
				d := dialInBackground(cfg)
				if test.name != "refused" {
					test.play(g)
				}
				<-d.done
				if d.err == nil || !test.want(d.err) {
					t.Errorf("got %v", d.err)
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("it took %v, want %v", took, test.took)
				}
				if failed != 1 {
					t.Errorf("OnConnectFailed: called %d times, want 1", failed)
				}
			})
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, keep := range []bool{false, true} {
			g := newFakeGateway(t)
			cfg := g.config()
			cfg.KeepDialing = keep
			if keep {
				g.setRefuse(errors.New("connection refused"))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			start := time.Now()
			_, err := client.Dial(ctx, cfg)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
				t.Errorf("KeepDialing %v: got %v after %v, want DeadlineExceeded after 3s", keep, err, time.Since(start))
			}
			if keep && !strings.Contains(err.Error(), "connection refused") {
				t.Errorf("got %v, want the cause", err)
			}
		}
	})
}

func TestDialRefusesConfig(t *testing.T) {
	for name, cfg := range map[string]client.Config{
		"missing port": {Addr: "gateway", ClientID: testID(t)},
		"no client_id": {Addr: "gateway:1"},
		"no version":   {Addr: "gateway:1", ClientID: testID(t), Version: 3},
		"no such dir":  {},
	} {
		if c, err := client.Dial(t.Context(), cfg); err == nil {
			t.Errorf("%s: no error", name)
			c.Close()
		}
	}
}

// What the gateway asks for is waited out, and the rest is jitter.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, refusal := range []wire.Code{wire.CodeOverloaded, wire.CodeAuthUnavailable, wire.CodeRateLimited} {
			g := newFakeGateway(t)
			cfg := g.config()
			cfg.KeepDialing = true
			d := dialInBackground(cfg)
			p := g.accept()
			expect[*wire.Hello](p)
			p.send(&wire.Error{Code: refusal, RetryAfter: 7 * time.Second, Close: true})
			go g.accept().serve(newToken(t))
			c := d.wait(t)
			tries := g.attempts()
			if gap := tries[1].Sub(tries[0]); gap < 7*time.Second || gap > 7*time.Second+cfg.BackoffCap {
				t.Errorf("%s: next attempt after %v, want 7s and at most %v", refusal, gap, cfg.BackoffCap)
			}
			c.Close()
		}
	})
}

// A gateway that comes back after a long time is found, by attempts that have become rare.
func TestReconnectBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		cfg.BackoffBase, cfg.BackoffCap = 500*time.Millisecond, 30*time.Second
		c, p := g.connect(cfg, token)
		defer c.Close()
		time.Sleep(time.Minute)
		g.setRefuse(errors.New("connection refused"))
		p.close()
		time.Sleep(time.Hour)
		g.setRefuse(nil)
		start := time.Now()
		p = g.accept()
		p.welcome(token)
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("found again after %v, want at most 30s", took)
		}
		tries := g.attempts()[1:]
		// 3600 s in waits of 15 s on average: 240.
		if n := len(tries); n < 150 || n > 400 {
			t.Errorf("attempts in an hour: got %d, want about 240", n)
		}
		// After a connection that lasted, it begins anew.
		time.Sleep(time.Minute)
		start = time.Now()
		p.close()
		g.accept().welcome(token)
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("after a connection that lasted: %v, want at most 500ms", took)
		}
	})
}

func TestCloseSaysBye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		c, p := g.connect(g.config(), newToken(t))
		inFlight := ask(t.Context(), c, `1`)
		p.expectRequest()
		closed := make(chan struct{})
		go func() { defer close(closed); c.Close() }()
		expect[*wire.Bye](p)
		p.expectEnd()
		<-closed
		if _, err := inFlight.wait(); !errors.Is(err, client.ErrClosed) {
			t.Errorf("a request in flight: got %v, want ErrClosed", err)
		}
		if _, err := c.Request(t.Context(), "echo", []byte(`1`)); !errors.Is(err, client.ErrClosed) {
			t.Errorf("a request after it: got %v, want ErrClosed", err)
		}
		if !errors.Is(c.Err(), client.ErrClosed) || c.Session() != "" {
			t.Errorf("Err: got %v, session %q", c.Err(), c.Session())
		}
		<-c.Done()
		if err := c.Close(); err != nil {
			t.Errorf("a second Close: %v", err)
		}
	})
}

// Close ends within a second, whatever the gateway does; synctest would tell of
// goroutines left behind.
func TestCloseDoesNotHang(t *testing.T) {
	for name, play := range map[string]func(t *testing.T, g *fakeGateway, p *peer){
		"gateway does not read": func(*testing.T, *fakeGateway, *peer) {},
		"while reconnecting": func(_ *testing.T, g *fakeGateway, p *peer) {
			g.setRefuse(errors.New("connection refused"))
			p.close()
			synctest.Wait()
		},
		"while waiting for WELCOME": func(_ *testing.T, g *fakeGateway, p *peer) {
			p.close()
			expect[*wire.Hello](g.accept())
		},
		"while told to go": func(_ *testing.T, g *fakeGateway, p *peer) {
			p.send(&wire.Goaway{After: time.Minute})
			synctest.Wait()
		},
		"while the next connection is made": func(_ *testing.T, g *fakeGateway, p *peer) {
			p.send(&wire.Goaway{})
			expect[*wire.Hello](g.accept())
		},
		"in the middle of a frame": func(_ *testing.T, g *fakeGateway, p *peer) {
			p.sendRaw([]byte{1, byte(wire.TypeResponse), 0})
		},
		"after the end": func(_ *testing.T, g *fakeGateway, p *peer) {
			p.send(wire.Errorf(wire.CodeTakenOver, ""))
			synctest.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGateway(t)
				c, p := g.connect(g.config(), newToken(t))
				play(t, g, p)
				start := time.Now()
				c.Close()
				if took := time.Since(start); took > time.Second {
					t.Errorf("Close took %v, want at most 1s", took)
				}
			})
		})
	}
}
