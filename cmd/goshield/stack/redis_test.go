package stack

// What holds while a real Redis Cluster breaks under load: RELIABILITY rows 34, 36 and 38.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
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
// to come back, everybody sees what is wrong, a gateway lets through its share of a limit, and it recovers alone.
func TestRedisFrozen(t *testing.T) {
	outage := 5 * time.Second
	if long {
		outage = 50 * time.Second
	}
	const gateways, rate, burst = 2, 60.0, 30.0
	const batch = 3 // a twentieth of the rate
	c := redistest.StartOwn(t)
	doc := quickDocument()
	doc.Services = map[string]dynamic.Service{"echo-http": {Limit: dynamic.Bucket{Rate: rate, Burst: burst}}}
	f := startAsInProduction(t, doc, c.Addrs())
	l := begin(t, f.bench(40, 200, 10*time.Minute))
	limited := ask(t, "echo-http", f.connect(t, 10), 4*rate)
	limited.awaitRate(t, rate, "one gateway lets through all of the limit, of which the other has no need")
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
	from, thawed := frozen.Add(time.Second), time.Now()
	share := rate / gateways * thawed.Sub(from).Seconds()
	if n := float64(limited.between(from, thawed)); n < share/2 || n > share+2*batch {
		t.Errorf("without Redis one of %d gateways let %.0f through in %v, want its share of %.0f", gateways, n, thawed.Sub(from), share)
	}
	for _, n := range c.Nodes() {
		n.Thaw()
	}
	limited.awaitRate(t, rate, "one gateway lets through all of the limit again")
	t.Attr("limit_whole_again", time.Since(thawed).Round(100*time.Millisecond).String())
	limited.stop(t)
	most := burst + gateways*batch + 0.35*rate // until a gateway has noticed that Redis is back
	limited.wantWithin(t, rate, most)
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

// Row 38: slots move under load, with the records in them, and with a limit that nobody is over. No client sees an error.
func TestSlotsMoveUnderLoad(t *testing.T) {
	c := redistest.StartOwn(t)
	doc := quickDocument()
	doc.Services = map[string]dynamic.Service{"echo": {Limit: dynamic.Bucket{Rate: 1000, Burst: 2000}}}
	f := start(t, doc, c.Addrs())
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
	moveLimit(t, c)
	l.goesOn(t, 600)
	l.quiet(t)
}

// moveLimit moves the slot of the echo service's limit to another node, one step after the other, as redis-cli does. Tokens are leased
// at every step.
func moveLimit(t *testing.T, c *redistest.Own) {
	t.Helper()
	const bucket = "goshield:limit:{echo}"
	var from, to *redis.Client
	redistest.Until(t, "all nodes agree on who is a primary, and since when", func() bool {
		from, to = nil, nil
		views := map[string]bool{}
		for _, n := range c.Nodes() {
			text, err := n.Client().ClusterNodes(t.Context()).Result()
			if err != nil {
				return false
			}
			var epochs []string
			for line := range strings.Lines(text) {
				if fields := strings.Fields(line); strings.Contains(fields[2], "master") { // id, address, flags, primary, ping, pong, epoch
					epochs = append(epochs, fields[0]+" "+fields[6])
				}
			}
			slices.Sort(epochs)
			views[strings.Join(epochs, ", ")] = true
			switch {
			case !n.IsPrimary():
			case n.Client().Exists(t.Context(), bucket).Err() == nil: // others say MOVED
				from = n.Client()
			default:
				to = n.Client()
			}
		}
		return len(views) == 1 && from != nil && to != nil
	})
	do := func(c *redis.Client, args ...any) any {
		t.Helper()
		v, err := c.Do(t.Context(), args...).Result()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return v
	}
	// leases waits until some were leased at a node, to which the slot may be on its way.
	leases := func(what string, at *redis.Client) {
		t.Helper()
		last, changes := "", 0
		until(t, time.Minute, "tokens are leased "+what, func() bool {
			p := at.Pipeline()
			p.Do(t.Context(), "asking")
			now := p.HGet(t.Context(), bucket, "at")
			if _, err := p.Exec(t.Context()); err == nil && now.Val() != last {
				last = now.Val()
				changes++
			}
			return changes > 3
		})
	}
	slot, fromID, toID := do(from, "cluster", "keyslot", bucket), do(from, "cluster", "myid"), do(to, "cluster", "myid")
	host, port, err := net.SplitHostPort(to.Options().Addr)
	if err != nil {
		t.Fatal(err)
	}
	do(to, "cluster", "setslot", slot, "importing", fromID)
	do(from, "cluster", "setslot", slot, "migrating", toID)
	leases("before the keys move", from)
	do(from, "migrate", host, port, "", 0, 10_000, "keys", bucket, bucket+":nodes")
	leases("where the keys are, before the slot is", to)
	do(to, "cluster", "setslot", slot, "node", toID)
	do(from, "cluster", "setslot", slot, "node", toID)
	leases("where the slot is", to)
}
