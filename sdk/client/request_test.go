package client_test

// Requests: many at once, late, lost, too large.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

func TestEnrolThenRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		cfg := g.config()
		cfg.Agent = "meter/1.4"
		d := dialInBackground(cfg)
		p := g.accept()
		hello := p.welcome(token)
		if hello.ClientID != testID(t) || !hello.Token.IsZero() || hello.Agent != "meter/1.4" {
			t.Errorf("HELLO: got %s, token %v, agent %q", hello.ClientID, !hello.Token.IsZero(), hello.Agent)
		}
		c := d.wait(t)
		defer c.Close()
		if c.Session() != "fake/1" {
			t.Errorf("Session: got %q, want fake/1", c.Session())
		}
		a := ask(t.Context(), c, `{"hello":"world"}`)
		req := p.echo()
		if req.Token != token || req.Service != "echo" || string(req.Body) != `{"hello":"world"}` {
			t.Errorf("REQUEST: got service %q, body %s, right token %v", req.Service, req.Body, req.Token == token)
		}
		a.expectAnswer(t, `{"hello":"world"}`)
	})
}

func TestAnswersInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 32
		g := newFakeGateway(t)
		c, p := g.connect(g.config(), newToken(t))
		defer c.Close()
		var asked []*asking
		for i := range n {
			asked = append(asked, ask(t.Context(), c, fmt.Sprint(i)))
		}
		ids := make(map[uint32]bool)
		var requests []*wire.Request
		for range n {
			req := p.expectRequest()
			requests = append(requests, req)
			if ids[req.ID] {
				t.Errorf("id %d is in flight twice", req.ID)
			}
			ids[req.ID] = true
		}
		for i := range requests {
			req := requests[n-1-i]
			if i%4 == 3 {
				p.send(&wire.Error{Code: wire.CodeBackendError, Message: string(req.Body), ID: req.ID, HasID: true})
			} else {
				p.send(&wire.Response{ID: req.ID, Body: req.Body})
			}
		}
		refusals := 0
		for i, a := range asked {
			body, err := a.wait()
			if code(err) == wire.CodeBackendError && strings.HasSuffix(err.Error(), ": "+fmt.Sprint(i)) {
				refusals++
			} else if err != nil || body != fmt.Sprint(i) {
				t.Errorf("request %d: got %q, %v", i, body, err)
			}
		}
		if refusals != n/4 {
			t.Errorf("refusals: got %d, want %d", refusals, n/4)
		}
	})
}

func TestRequestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		cfg := g.config()
		cfg.RequestTimeout = 3 * time.Second
		cfg.MaxInFlight = 2
		c, p := g.connect(cfg, newToken(t))
		defer c.Close()

		start := time.Now()
		late := ask(context.Background(), c, `"late"`)
		lateReq := p.expectRequest()
		if _, err := late.wait(); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("without a deadline: got %v after %v, want DeadlineExceeded after 3s", err, time.Since(start))
		}

		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		start = time.Now()
		short := ask(ctx, c, `"short"`)
		shortReq := p.expectRequest()
		if _, err := short.wait(); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 100*time.Millisecond {
			t.Errorf("with a deadline: got %v after %v, want DeadlineExceeded after 100ms", err, time.Since(start))
		}

		// Both are still in flight for the gateway: a third must wait.
		third := ask(t.Context(), c, `"third"`)
		synctest.Wait()
		select {
		case <-third.done:
			t.Fatalf("a third request did not wait: %v", third.err)
		default:
		}
		p.send(&wire.Response{ID: lateReq.ID, Body: []byte(`"nobody waits for this"`)})
		req := p.expectRequest()
		if req.ID == shortReq.ID {
			t.Errorf("id %d is in flight twice", req.ID)
		}
		p.send(&wire.Response{ID: req.ID, Body: req.Body})
		third.expectAnswer(t, `"third"`)
	})
}

func TestRequestsThatAreRefusedLocally(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGateway(t)
		c, p := g.connect(g.config(), newToken(t), func(w *wire.Welcome) { w.MaxFrame = 1000 })
		defer c.Close()
		for _, test := range []struct{ name, service, body, want string }{
			{"no service", "", `1`, "service name of 0 bytes"},
			{"service too long", strings.Repeat("s", 256), `1`, "service name of 256 bytes"},
			{"no body", "echo", ``, "not JSON"},
			{"broken body", "echo", `{"a":}`, "not JSON"},
			{"over max_frame", "echo", `"` + strings.Repeat("x", 1000) + `"`, "over the gateway's limit of 1000"},
			{"over any frame", "echo", `"` + strings.Repeat("x", 70000) + `"`, "over the limit of 65535"},
		} {
			_, err := c.Request(t.Context(), test.service, []byte(test.body))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: got %v, want %q", test.name, err, test.want)
			}
		}
		// None of them has reached the gateway, nor kept a place among those in flight.
		for i := range 2 * client.DefaultMaxInFlight {
			a := ask(t.Context(), c, fmt.Sprint(i))
			if req := p.echo(); string(req.Body) != fmt.Sprint(i) {
				t.Fatalf("got %s, want %d", req.Body, i)
			}
			a.expectAnswer(t, fmt.Sprint(i))
		}
	})
}

// A request that was sent and not answered is never sent again.
func TestConnectionBreaksUnderRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, p := g.connect(g.config(), token)
		defer c.Close()
		sent := ask(t.Context(), c, `"sent"`)
		p.expectRequest()
		p.close()
		if _, err := sent.wait(); !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("got %v, want ErrConnectionLost", err)
		}
		p = g.accept()
		p.welcome(token)
		next := ask(t.Context(), c, `"next"`)
		if req := p.echo(); string(req.Body) != `"next"` {
			t.Errorf("on the next connection: got %s, want another request", req.Body)
		}
		next.expectAnswer(t, `"next"`)
	})
}

// The gateway does not read: what the writer never took goes out on the next
// connection, what it was writing does not.
func TestUnsentRequestsMoveOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, p := g.connect(g.config(), token)
		defer c.Close()
		sent := ask(t.Context(), c, `"sent"`)
		synctest.Wait()
		queued := ask(t.Context(), c, `"queued"`)
		synctest.Wait()
		p.close() // without having read a byte
		if _, err := sent.wait(); !errors.Is(err, client.ErrConnectionLost) {
			t.Errorf("the request being written: got %v, want ErrConnectionLost", err)
		}
		p = g.accept()
		p.welcome(token)
		if req := p.echo(); string(req.Body) != `"queued"` {
			t.Errorf("on the next connection: got %s, want the queued request", req.Body)
		}
		queued.expectAnswer(t, `"queued"`)
	})
}

// An answer to a request that there is not means that the gateway is confused:
// nothing it says can be trusted (RELIABILITY row 29, from the device's side).
func TestAnswerToNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, p := g.connect(g.config(), token)
		defer c.Close()
		a := ask(t.Context(), c, `1`)
		req := p.expectRequest()
		p.send(&wire.Response{ID: req.ID + 1, Body: []byte(`2`)})
		if body, err := a.wait(); !errors.Is(err, client.ErrConnectionLost) || !errors.Is(err, client.ErrProtocol) {
			t.Errorf("got %q, %v, want ErrConnectionLost and ErrProtocol", body, err)
		}
		g.accept().welcome(token)
	})
}

func TestRequestWhileDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, token := newFakeGateway(t), newToken(t)
		c, p := g.connect(g.config(), token)
		defer c.Close()
		g.setRefuse(errors.New("no route"))
		p.close()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Request(ctx, "echo", []byte(`1`))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no route") {
			t.Errorf("got %v, want a deadline that names the cause", err)
		}
		waits := ask(t.Context(), c, `2`)
		g.setRefuse(nil)
		p = g.accept()
		p.welcome(token)
		p.echo()
		waits.expectAnswer(t, `2`)
	})
}
