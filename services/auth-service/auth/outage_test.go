package auth_test

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
	"github.com/goshield/goshield/services/auth-service/token"
)

// freeze is a Redis that takes connections and says nothing.
func freeze(t *testing.T) redisdb.Config {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // the kernel completes the handshakes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return redisdb.Config{Addresses: []string{ln.Addr().String()}, Mode: redisdb.ModeSingle}
}

// eventually waits for a condition, for long: the machine may be busy.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for: %s", what)
		}
	}
}

// TestRedisAway: every operation answers auth_unavailable with a hint; the process stays ready, says
// what is wrong, and recovers by itself (RELIABILITY rows 36, 39).
func TestRedisAway(t *testing.T) {
	e, _ := redistest.Embedded(t)
	w := start(t, e.Config(), nil)
	id := newID()
	issued := w.enrol(id)
	e.Stop()
	for _, r := range routes(id) {
		p := w.refused(503, wire.CodeAuthUnavailable, r.method, r.path, adminSecret, r.body)
		if p.RetryAfterMS <= 0 || strings.Contains(p.Detail, e.Addr()) {
			t.Errorf("%s %s: %+v, want a hint when to come back, and not where Redis is", r.method, r.path, p)
		}
	}
	eventually(t, "degraded", func() bool { return w.counter("goshield_degraded", "redis") == 1 })
	// A gateway asks with an empty release whether calls are of use again: they are not.
	w.refused(503, wire.CodeAuthUnavailable, "POST", authapi.PathRelease, gatewaySecret, []authapi.Release{})
	if ready, text := w.srv.Health().Ready(); !ready || !strings.Contains(text, "degraded: redis") {
		t.Errorf("readiness %v %q, want ready, degraded: redis", ready, text)
	}
	if err := e.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recovered", func() bool { return w.counter("goshield_degraded", "redis") == 0 })
	w.ok(200, "POST", authapi.PathRelease, gatewaySecret, []authapi.Release{}, nil)
	w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token}, nil)
}

// TestStartWithoutRedis: it starts, refuses, and serves once Redis is there, whatever the mode.
func TestStartWithoutRedis(t *testing.T) {
	for _, mode := range []redisdb.Mode{redisdb.ModeSingle, redisdb.ModeAuto} {
		t.Run(string(mode), func(t *testing.T) {
			e, _ := redistest.Embedded(t)
			e.Stop()
			cfg := e.Config()
			cfg.Mode = mode
			w := start(t, cfg, nil)
			w.refused(503, wire.CodeAuthUnavailable, "POST", authapi.PathTokens, gatewaySecret,
				authapi.IssueRequest{ClientID: newID(), Owner: "n/1"})
			if ready, _ := w.srv.Health().Ready(); !ready {
				t.Error("not ready: the outage of a dependency must not take it out of service")
			}
			if err := e.Resume(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a token is issued", func() bool {
				resp, err := w.exchange("POST", authapi.PathTokens, gatewaySecret, authapi.IssueRequest{ClientID: newID(), Owner: "n/1"})
				return err == nil && resp.status == 201
			})
			issued := w.enrol(newID())
			if issued.Epoch == 0 {
				t.Error("an enrolment without an epoch")
			}
		})
	}
}

// TestNoReplica: what becomes of the operations while no replica confirms.
func TestNoReplica(t *testing.T) {
	mini := miniredis.RunT(t)
	confirming := atomic.Int64{} // replicas that do
	mini.Server().SetPreHook(func(c *server.Peer, cmd string, _ ...string) bool {
		if cmd != "WAIT" {
			return false
		}
		c.WriteInt(int(confirming.Load()))
		return true
	})
	err := mini.Server().Register("ROLE", func(c *server.Peer, _ string, _ []string) {
		c.WriteLen(3)
		c.WriteBulk("master")
		c.WriteInt(1)
		c.WriteLen(1)
		c.WriteStrings([]string{"10.0.0.1", "6379", "1"}) // a replica that never answers a WAIT
	})
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, redisdb.Config{Addresses: []string{mini.Addr()}, Mode: redisdb.ModeSingle}, nil)
	id := newID()
	issued := w.enrol(id)
	w.refused(503, wire.CodeAuthUnavailable, "POST", authapi.PathRotate, gatewaySecret,
		authapi.RotateRequest{ClientID: id, Token: issued.Token, Owner: "n/1"})
	w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token}, nil)
	w.refused(503, wire.CodeAuthUnavailable, "DELETE", authapi.PathClients+id.String()+"/token", adminSecret, nil)
	for _, op := range []string{"issue", "rotate", "revoke"} {
		if got := w.counter("goshield_auth_unconfirmed_total", op); got != 1 {
			t.Errorf("goshield_auth_unconfirmed_total %s = %v, want 1", op, got)
		}
	}
	// While it lasts the readiness body says so; one confirmed write ends it.
	eventually(t, "degraded", func() bool { w.enrol(newID()); return w.counter("goshield_degraded", "redis_replica") == 1 })
	if ready, text := w.srv.Health().Ready(); !ready || !strings.Contains(text, "degraded: redis_replica: no replica confirms writes at "+mini.Addr()) {
		t.Errorf("readiness %v %q, want ready, degraded: redis_replica", ready, text)
	}
	confirming.Store(1)
	w.enrol(newID())
	eventually(t, "recovered", func() bool { return w.counter("goshield_degraded", "redis_replica") == 0 })
}

// TestReplicaLost: a primary of a real cluster that has lost its replica is told of, though nothing is written to it; others are not; and its
// return is.
func TestReplicaLost(t *testing.T) {
	t.Parallel()
	c := redistest.StartOwn(t)
	w := start(t, c.Config(), nil)
	id := newID()
	w.enrol(id)
	primary, replica := c.Shard(token.Key(id))
	if ready, text := w.srv.Health().Ready(); !ready || strings.Contains(text, "redis_replica") {
		t.Errorf("readiness %v %q, want ready and nothing of replicas", ready, text)
	}
	replica.Kill()
	eventually(t, "degraded", func() bool { return w.counter("goshield_degraded", "redis_replica") == 1 })
	want := "degraded: redis_replica: no replica confirms writes at " + primary.Addr() + ": "
	if ready, text := w.srv.Health().Ready(); !ready || !strings.Contains(text, want) {
		t.Errorf("readiness %v %q, want ready, %s", ready, text, want)
	}
	replica.Start()
	eventually(t, "recovered", func() bool { return w.counter("goshield_degraded", "redis_replica") == 0 })
}

// TestReplay: a token replayed after its grace revokes the record, tells every gateway, and stands
// in the audit (RELIABILITY row 42). Enrolment is open to the device all the same.
func TestReplay(t *testing.T) {
	each(t, func(c *auth.Config) { c.Defaults.Token.Grace = 0 }, func(t *testing.T, w *world) {
		rdb, err := redisdb.Open(t.Context(), w.cfg.Redis)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rdb.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		sub := rdb.Subscribe(ctx, token.RevokedStream)
		defer func() { _ = sub.Close() }()
		if _, err := sub.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		id := newID()
		issued := w.enrol(id)
		var next authapi.RotateAnswer
		w.ok(200, "POST", authapi.PathRotate, gatewaySecret, authapi.RotateRequest{ClientID: id, Token: issued.Token, Owner: "n/1"}, &next)
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: next.Token}, nil)

		w.refused(401, wire.CodeTokenReused, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token, RemoteIP: "203.0.113.9"})
		w.refused(401, wire.CodeRevoked, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: next.Token})
		for want := id.String() + " token_reused"; ; {
			m, err := sub.ReceiveMessage(ctx)
			if err != nil {
				t.Fatalf("waiting for %q: %v", want, err)
			}
			if m.Payload == want {
				break
			}
		}
		entries, err := rdb.XRevRange(ctx, token.RevokedStream, "+", "-").Result()
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, x := range entries {
			if x.Values["client_id"] == id.String() && x.Values["code"] == "token_reused" {
				found++
			}
		}
		if found != 1 {
			t.Errorf("the stream has %d entries of it, want 1", found)
		}
		audited := false
		for _, line := range w.log.lines(t, "audit") {
			audited = audited || line["result"] == "token_reused" && line["client_id"] == id.String() &&
				line["remote_ip"] == "203.0.113.9" && line["gen"] == 2.0
		}
		if !audited {
			t.Error("the replay is not in the audit")
		}
		if got := w.counter("goshield_auth_operations_total", "verify", "token_reused"); got != 1 {
			t.Errorf("operations verify, token_reused: %v, want 1", got)
		}
		again := w.enrol(id)
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: again.Token}, nil)
	})
}

// TestUnfinishedRevocation: one that could not be announced is, once that is possible.
func TestUnfinishedRevocation(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	w := start(t, e.Config(), func(c *auth.Config) { c.Defaults.Token.Grace = 0 })
	id := newID()
	issued := w.enrol(id)
	var next authapi.RotateAnswer
	w.ok(200, "POST", authapi.PathRotate, gatewaySecret, authapi.RotateRequest{ClientID: id, Token: issued.Token, Owner: "n/1"}, &next)
	w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: next.Token}, nil)
	if err := rdb.Set(t.Context(), token.RevokedStream, "in the way", 0).Err(); err != nil { // XADD fails
		t.Fatal(err)
	}
	w.refused(401, wire.CodeTokenReused, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token})
	if err := rdb.Del(t.Context(), token.RevokedStream).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the announcement", func() bool { return rdb.XLen(t.Context(), token.RevokedStream).Val() == 1 })
}

// TestDrain: a request under way is finished, and what comes after is refused a connection.
func TestDrain(t *testing.T) {
	w := start(t, freeze(t), func(c *auth.Config) { c.Redis.Timeout = 2 * time.Second })
	done := make(chan any, 1)
	go func() { // ends with its answer, for which the test waits
		resp, err := w.exchange("POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: newID(), Token: wire.Token{1}})
		if err != nil {
			done <- err
			return
		}
		done <- resp.status
	}()
	eventually(t, "the request to be under way", func() bool { return w.srv.InFlight() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := w.srv.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown() = %v, want nil", err)
	}
	if got := <-done; got != 503 {
		t.Errorf("the request under way: %v, want the 503 that it would have had", got)
	}
	if ready, text := w.srv.Health().Ready(); ready || !strings.Contains(text, "draining") {
		t.Errorf("readiness %v %q, want not ready: draining", ready, text)
	}
	if conn, err := net.Dial("tcp", w.srv.Addr()); err == nil {
		_ = conn.Close()
		t.Error("it still listens")
	}
}

func TestKill(t *testing.T) {
	e, _ := redistest.Embedded(t)
	w := start(t, e.Config(), nil)
	w.enrol(newID())
	w.srv.Kill()
	if _, err := net.Dial("tcp", w.srv.Addr()); err == nil {
		t.Error("it still listens")
	}
	second := start(t, e.Config(), func(c *auth.Config) { c.Listen = w.srv.Addr() })
	second.enrol(newID())
}

// TestTakenAddress leaves nothing open.
func TestTakenAddress(t *testing.T) {
	w := embedded(t, nil)
	cfg := w.cfg
	cfg.Listen = w.srv.Addr()
	srv, err := auth.New(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(); err == nil || !strings.Contains(err.Error(), "listen: ") {
		t.Errorf("Start() = %v, want an error of key listen", err)
	}
}
