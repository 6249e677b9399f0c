package auth_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
	"github.com/goshield/goshield/services/auth-service/guess"
)

// TestGuessing: who guesses is refused, even when right, and the victim is not (RELIABILITY row 43).
func TestGuessing(t *testing.T) {
	each(t, nil, func(t *testing.T, w *world) {
		victim := newID()
		issued := w.enrol(victim)
		const attacker, home = "203.0.113.7", "192.0.2.1"
		attempt := authapi.VerifyRequest{ClientID: victim, Token: wire.Token{1}, Claim: &authapi.Claim{Owner: "n/2", RemoteIP: attacker}}
		for range 10 {
			w.refused(401, wire.CodeBadToken, "POST", authapi.PathVerify, gatewaySecret, attempt)
		}
		for range 2 {
			p := w.refused(429, wire.CodeRateLimited, "POST", authapi.PathVerify, gatewaySecret, attempt)
			if p.RetryAfterMS <= 0 || p.RetryAfterMS > time.Minute.Milliseconds() {
				t.Errorf("retry_after_ms %d, want up to a minute", p.RetryAfterMS)
			}
		}
		right := authapi.VerifyRequest{ClientID: victim, Token: issued.Token, Claim: &authapi.Claim{Owner: "n/2", RemoteIP: attacker}}
		w.refused(429, wire.CodeRateLimited, "POST", authapi.PathVerify, gatewaySecret, right)
		w.refused(429, wire.CodeRateLimited, "POST", authapi.PathTokens, gatewaySecret,
			authapi.IssueRequest{ClientID: victim, Owner: "n/2", RemoteIP: attacker})

		right.Claim.RemoteIP = home
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, right, nil)
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: victim, Token: issued.Token}, nil)
		w.ok(201, "POST", authapi.PathTokens, gatewaySecret,
			authapi.IssueRequest{ClientID: newID(), Owner: "n/3", RemoteIP: attacker}, nil) // another device there
		if got := w.counter("goshield_auth_operations_total", "verify", "rate_limited"); got != 3 {
			t.Errorf("operations verify, rate_limited: %v, want 3", got)
		}
	})
}

func TestGuessingOfProofs(t *testing.T) {
	w := embedded(t, func(c *auth.Config) {
		c.Defaults.Enrolment = dynamic.EnrolMTLS
		c.Guessing = guess.Limits{PerPair: 2, PerAddress: 4}
	})
	attempt := authapi.IssueRequest{ClientID: newID(), Owner: "n/1", RemoteIP: "2001:db8::1"}
	for _, status := range []int{401, 401, 429, 429} {
		code := map[int]wire.Code{401: wire.CodeBadProof, 429: wire.CodeRateLimited}[status]
		w.refused(status, code, "POST", authapi.PathTokens, gatewaySecret, attempt)
	}
	attempt.RemoteIP = "2001:db8::2" // the same house
	for _, status := range []int{401, 429, 429} {
		attempt.ClientID = newID()
		code := map[int]wire.Code{401: wire.CodeBadProof, 429: wire.CodeRateLimited}[status]
		w.refused(status, code, "POST", authapi.PathTokens, gatewaySecret, attempt)
	}
}

func TestGuessingUnlimited(t *testing.T) {
	w := embedded(t, func(c *auth.Config) { c.Guessing = guess.Limits{} })
	attempt := authapi.VerifyRequest{ClientID: newID(), Token: wire.Token{1}, RemoteIP: "127.0.0.1"}
	for range 30 {
		w.refused(401, wire.CodeBadToken, "POST", authapi.PathVerify, gatewaySecret, attempt)
	}
}

// TestTooManyAtOnce: what waits is bounded, and what comes on top is told to come back.
func TestTooManyAtOnce(t *testing.T) {
	frozen := freeze(t)
	w := start(t, frozen, func(c *auth.Config) {
		c.MaxInFlight = 2
		c.Redis.Timeout = 400 * time.Millisecond // a request may take a second
	})
	const n = 100
	answers := make(chan []byte, n)
	began := time.Now()
	for range n {
		go func() { // ends with its answer, for which the test waits
			resp, err := w.exchange("POST", authapi.PathVerify, gatewaySecret,
				authapi.VerifyRequest{ClientID: newID(), Token: wire.Token{1}})
			if err != nil {
				t.Error(err)
			}
			answers <- resp.body
		}()
	}
	turnedAway := 0
	for range n {
		var p authapi.Problem
		if err := json.Unmarshal(<-answers, &p); err != nil || p.Status != 503 || p.Code != wire.CodeAuthUnavailable || p.RetryAfterMS <= 0 {
			t.Errorf("answer %+v, %v, want 503 auth_unavailable and a hint when to come back", p, err)
		}
		if p.Detail == "too many requests at once" {
			turnedAway++
		}
	}
	if turnedAway < n/2 {
		t.Errorf("%d of %d were turned away, want most", turnedAway, n)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("answers took %v, want about two seconds", took)
	}
}

// TestAccountOfHeaders: 429 and 503 say when to come back in HTTP's words, too.
func TestAccountOfHeaders(t *testing.T) {
	w := embedded(t, func(c *auth.Config) { c.Guessing = guess.Limits{PerPair: 1} })
	attempt := authapi.VerifyRequest{ClientID: newID(), Token: wire.Token{1}, RemoteIP: "192.0.2.9"}
	w.refused(401, wire.CodeBadToken, "POST", authapi.PathVerify, gatewaySecret, attempt)
	resp := w.send("POST", authapi.PathVerify, gatewaySecret, attempt)
	if resp.status != http.StatusTooManyRequests || resp.header.Get("Retry-After") == "" {
		t.Errorf("status %d, Retry-After %q, want 429 and some seconds", resp.status, resp.header.Get("Retry-After"))
	}
}

// TestFlapping: a device that changes hands all the time is told when to come back.
func TestFlapping(t *testing.T) {
	w := embedded(t, func(c *auth.Config) { c.MaxTakeovers = 2 })
	id := newID()
	issued := w.enrol(id)
	claim := func(session string) authapi.VerifyRequest {
		return authapi.VerifyRequest{ClientID: id, Token: issued.Token, Claim: &authapi.Claim{Owner: "n/" + session, RemoteIP: "192.0.2.1"}}
	}
	for _, session := range []string{"2", "3"} {
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, claim(session), nil)
	}
	p := w.refused(429, wire.CodeRateLimited, "POST", authapi.PathVerify, gatewaySecret, claim("4"))
	if p.RetryAfterMS <= 30_000 || p.RetryAfterMS > 60_000 {
		t.Errorf("retry_after_ms = %d, want up to a minute", p.RetryAfterMS)
	}
	if got := w.counter("goshield_auth_quarantined_total"); got != 1 {
		t.Errorf("goshield_auth_quarantined_total = %v, want 1", got)
	}
	w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token}, nil)
}
