package stack

// What holds while a real Redis Cluster breaks under load: RELIABILITY rows 34, 36 and 38.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// quiet ends a load, of which no device may have noticed anything.
func (l *load) quiet(t *testing.T) *bench.Result {
	t.Helper()
	r := l.end(t)
	delete(r.Errors, "interrupted") // by the end of the test
	if len(r.Errors) != 0 || r.Requests.Wrong != 0 {
		t.Errorf("errors %v %v, %d wrong answers; want none", r.Errors, r.Samples, r.Requests.Wrong)
	}
	if len(r.Sessions.Disconnects) != 0 || r.Sessions.EnrolledAnew != 0 {
		t.Errorf("connections lost: %v, %d enrolled anew; want none", r.Sessions.Disconnects, r.Sessions.EnrolledAnew)
	}
	return r
}

// goesOn waits until so many more requests were answered.
func (l *load) goesOn(t *testing.T, n int64) {
	t.Helper()
	before := l.now().Answered
	l.wait(t, 2*time.Minute, "requests are answered", func(p bench.Progress) bool { return p.Answered > before+n })
}

// enrols reports whether auth-service issues a token to a device.
func (f *fleet) enrols(t *testing.T, id wire.ClientID) bool {
	t.Helper()
	body, err := json.Marshal(authapi.IssueRequest{ClientID: id, Owner: "test/1"})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+f.AuthAddr()+authapi.PathTokens, strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+f.secret(t, f.secrets.Gateway))
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusCreated
}

// metric is a sample of the admin server's page: name and labels as it writes them.
func (f *fleet) metric(t *testing.T, sample string) string {
	t.Helper()
	_, page := get(t, "http://"+f.AdminAddr()+"/metrics", "")
	for line := range strings.Lines(page) {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Row 34: a primary is killed; its shard is writable again without anybody's doing, and no live
// connection is dropped.
func TestPrimaryKilled(t *testing.T) {
	c := redistest.StartOwn(t)
	f := startAsInProduction(t, quickDocument(), c.Addrs())
	l := begin(t, f.bench(40, 200, 10*time.Minute))
	id := f.device(t, nil).ClientID
	primary, _ := c.Shard("goshield:token:{" + id.String() + "}")
	primary.Kill()
	killed := time.Now()
	redistest.Until(t, "a device of the shard enrols", func() bool { return f.enrols(t, id) })
	took := time.Since(killed)
	t.Logf("writable after %v", took.Round(10*time.Millisecond))
	if limit := 6 * time.Second; long && took > limit {
		t.Errorf("writable after %v, want at most %v", took, limit)
	}
	l.goesOn(t, 400)
	primary.Start()
	c.AwaitWhole()
	l.goesOn(t, 200)
	until(t, time.Minute, "Redis is whole for auth-service", func() bool {
		return f.metric(t, `goshield_degraded{dependency="redis",node="auth"}`) == "0"
	})
	l.quiet(t)
}

// Row 36: all of Redis says nothing for a while. Who is connected is served, new devices are told when
// to come back, everybody sees what is wrong, and it recovers alone.
func TestRedisFrozen(t *testing.T) {
	outage := 5 * time.Second
	if long {
		outage = 50 * time.Second
	}
	c := redistest.StartOwn(t)
	f := startAsInProduction(t, quickDocument(), c.Addrs())
	l := begin(t, f.bench(40, 200, 10*time.Minute))
	for _, n := range c.Nodes() {
		n.Freeze()
	}
	frozen := time.Now()
	until(t, time.Minute, "everybody says that it is degraded", func() bool {
		for _, node := range []string{"auth", "gateway-1", "gateway-2"} {
			if f.metric(t, fmt.Sprintf(`goshield_degraded{dependency="redis",node=%q}`, node)) != "1" {
				return false
			}
		}
		return true
	})
	if _, page := get(t, "http://"+f.AdminAddr()+"/readyz", ""); !strings.Contains(page, "degraded: redis") {
		t.Errorf("readiness says %q, want degraded: redis", page)
	}
	_, err := client.Dial(t.Context(), f.device(t, client.MemoryStore()))
	var refused *wire.Error
	if !errors.As(err, &refused) || refused.Code != wire.CodeAuthUnavailable || refused.RetryAfter <= 0 {
		t.Errorf("a new device: got %v, want auth_unavailable with retry_after_ms", err)
	}
	l.goesOn(t, 400)
	if left := outage - time.Since(frozen); left > 0 {
		<-time.After(left) // it is about the length of the outage
	}
	for _, n := range c.Nodes() {
		n.Thaw()
	}
	until(t, 2*time.Minute, "a new device enrols", func() bool {
		d, err := client.Dial(t.Context(), f.device(t, client.MemoryStore()))
		if err != nil {
			return false
		}
		_ = d.Close()
		return true
	})
	l.goesOn(t, 400)
	l.quiet(t)
}

// Row 38: slots move under load, with the records in them. No client sees an error.
func TestSlotsMoveUnderLoad(t *testing.T) {
	c := redistest.StartOwn(t)
	f := start(t, quickDocument(), c.Addrs())
	l := begin(t, f.bench(60, 300, 10*time.Minute))
	var primaries []*redistest.Node
	for _, n := range c.Nodes() {
		if n.IsPrimary() {
			primaries = append(primaries, n)
		}
	}
	slots := 300
	if long {
		slots = 5000
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	moved := make(chan error, 1)
	go func() { moved <- c.Reshard(ctx, slots, primaries[0], primaries[1]) }()
	for done := false; !done; {
		select {
		case err := <-moved:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default: // meanwhile devices come and go
			d, err := client.Dial(t.Context(), f.device(t, client.MemoryStore()))
			if err != nil {
				t.Errorf("a new device: %v", err)
				continue
			}
			_ = d.Close()
		}
	}
	l.goesOn(t, 600)
	l.quiet(t)
}
