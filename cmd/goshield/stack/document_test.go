package stack

// The dynamic document, set in Redis while everything runs.

import (
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/internal/configdb"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// redisOf is a client of the stack's Redis, until the test ends.
func redisOf(t *testing.T, f *fleet) redis.UniversalClient {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: f.RedisAddrs()[0], Protocol: 2})
	t.Cleanup(func() {
		if err := rdb.Close(); err != nil {
			t.Errorf("close redis: %v", err)
		}
	})
	return rdb
}

// awaitMetric waits until each of the nodes has this line: name{node="…"} value.
func (f *fleet) awaitMetric(t *testing.T, name string, value int, nodes ...string) {
	t.Helper()
	until(t, time.Minute, fmt.Sprintf("%s is %d at %v", name, value, nodes), func() bool {
		_, page := get(t, "http://"+f.AdminAddr()+"/metrics", "")
		for _, node := range nodes {
			if !strings.Contains(page, fmt.Sprintf("%s{node=%q} %d\n", name, node, value)) {
				return false
			}
		}
		return true
	})
}

// changes are values of which open connections must notice nothing, and then, at the same path, those of before. What a
// device was told in its WELCOME holds for its session: the first three would end every session that went by the new ones.
func changes(doc dynamic.Document) [][3]string {
	echo := doc.Services["echo"]
	return [][3]string{
		{"heartbeat", `{"interval": "50ms", "missed": 1}`, dynamic.Text(doc.Heartbeat)},
		{"idle_timeout", "50ms", dynamic.Text(doc.IdleTimeout)},
		{"frame.max_bytes", "256", dynamic.Text(doc.Frame.MaxBytes)},
		{"max_in_flight", "2", dynamic.Text(doc.MaxInFlight)},
		{"device_limit", `{"rate": 200, "burst": 200, "on_limit": "wait", "bytes": {"rate": 1000000, "burst": 1000000}}`, dynamic.Text(doc.DeviceLimit)},
		{"gateway_limit", `{"max_connections": 1, "max_handshakes": 1}`, dynamic.Text(doc.GatewayLimit)},
		{"token.recheck", "500ms", dynamic.Text(doc.Token.Recheck)},
		{"services.echo.limit", `{"rate": 10000, "burst": 10000}`, dynamic.Text(echo.Limit)},
		{"services.echo.endpoints", strings.Join(echo.Endpoints[1:], ","), dynamic.Text(echo.Endpoints)},
		{"services.echo.algorithm", "least_inflight", dynamic.Text(echo.Algorithm)},
		{"services.echo.links", "4", dynamic.Text(echo.Links)},
		{"services.echo.timeout", "1m", dynamic.Text(echo.Timeout)},
	}
}

// A document that is set comes into force at every gateway and at auth-service within 2 s, and no connection notices, whatever
// changes. Each change is held to the 2 s at full size; else the median is, for a machine with other work.
func TestDocumentChangesUnderLoad(t *testing.T) {
	f := start(t, quickDocument(), nil)
	store := configdb.New(redisOf(t, f))
	doc, err := store.Defaults(t.Context())
	if err != nil {
		t.Fatalf("the gateways' defaults are to be in Redis: %v", err)
	}
	load := begin(t, f.bench(20, 100, 10*time.Minute))
	const limit = 2 * time.Second
	rounds := 1
	if long {
		rounds = 3
	}
	var times []time.Duration
	version := 0
	set := func(path, text string) {
		t.Helper()
		doc, err = doc.Set(path, text)
		at := time.Now()
		if err == nil {
			_, err = store.Put(t.Context(), doc, int64(version), "test")
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		version++
		f.awaitMetric(t, "goshield_gateway_config_version", version, "gateway-1", "gateway-2")
		f.awaitMetric(t, "goshield_auth_config_version", version, "auth")
		times = append(times, time.Since(at))
		load.goesOn(t, 20) // by this document: so long that who has nothing to say for 50 ms is seen
	}
	for range rounds {
		for _, c := range changes(doc) {
			set(c[0], c[1])
			set(c[0], c[2])
		}
	}
	worst := inTime(t, limit, times)
	t.Attr("in_force_everywhere_after", worst.Round(time.Millisecond).String())
	wantClean(t, load.end(t))
}

// Row 25: a document that nobody should have written changes nothing.
func TestInvalidDocumentChangesNothing(t *testing.T) {
	f := start(t, quickDocument(), nil)
	rdb := redisOf(t, f)
	store := configdb.New(rdb)
	doc, err := store.Defaults(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(t.Context(), doc, 0, "test"); err != nil {
		t.Fatal(err)
	}
	f.awaitMetric(t, "goshield_gateway_config_version", 1, "gateway-1", "gateway-2")
	if err := rdb.HSet(t.Context(), "goshield:config", "version", 2, "document", `{"services": {"echo": {"links": 1000}}}`).Err(); err != nil {
		t.Fatal(err)
	}
	f.awaitMetric(t, "goshield_gateway_config_refused_total", 1, "gateway-1", "gateway-2")
	f.awaitMetric(t, "goshield_auth_config_refused_total", 1, "auth")
	f.awaitMetric(t, "goshield_gateway_config_version", 1, "gateway-1", "gateway-2")
	wantClean(t, runBench(t, f.bench(5, 50, 2*time.Second)))
	if log := f.log.String(); !strings.Contains(log, "services.echo.") {
		t.Error("the log does not name the key")
	}
}

// auth-service goes by the document's enrolment and token rules.
func TestDocumentChangesEnrolment(t *testing.T) {
	f := start(t, quickDocument(), nil)
	store := configdb.New(redisOf(t, f))
	doc, err := store.Defaults(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantClean(t, runBench(t, f.bench(1, 10, time.Second)))
	doc.Enrolment = dynamic.EnrolAllowlist
	if _, err := store.Put(t.Context(), doc, 0, "test"); err != nil {
		t.Fatal(err)
	}
	f.awaitMetric(t, "goshield_auth_config_version", 1, "auth")
	until(t, time.Minute, "a device that is not registered is refused", func() bool {
		c, err := client.Dial(t.Context(), f.device(t, client.MemoryStore()))
		if err == nil {
			_ = c.Close()
			t.Fatal("a device that is not registered was let in")
		}
		return wantError(err, wire.CodeUnknownClient) == nil // and not only told to come again
	})
}

// A document that an earlier run left behind leads to backends that are gone. The stack gives it its own, and
// leaves alone whatever else it says.
func TestDocumentOfAnEarlierRun(t *testing.T) {
	e, rdb := redistest.Embedded(t)
	dead := porttest.Held(t) // nobody listens there
	other, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	doc := quickDocument()
	doc.MaxInFlight = 17
	at := func(protocol, endpoint string) dynamic.Service {
		return dynamic.Service{Protocol: protocol, Endpoints: []string{endpoint}, Algorithm: "round_robin", Links: 3, Timeout: dynamic.Duration(5 * time.Second)}
	}
	doc.Services = map[string]dynamic.Service{
		"echo":      at("link", dead),
		"push":      at("link", dead),
		"echo-http": at("http", other.Addr().String()), // somebody is there
		"echo-grpc": at("http", dead),                  // not what the backends speak there
		"push-grpc": at("grpc", "192.0.2.1:9"),         // on another machine
		"pay":       at("link", dead),                  // not the stack's
	}
	store := configdb.New(rdb)
	if _, err := store.Put(t.Context(), doc, 0, "test"); err != nil {
		t.Fatal(err)
	}
	f := startUnlinked(t, Config{Gateways: 2, DataDir: t.TempDir(), Document: quickDocument(), Redis: []string{e.Addr()}}, zapcore.DebugLevel)
	if got, want := f.Found(), (Found{Version: 2, Mended: []string{"echo", "push"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("Found() = %+v, want %+v", got, want)
	}
	entry, err := store.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := entry.Document()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"echo", "push"} {
		svc := doc.Services[name]
		svc.Endpoints = f.Stack.document().Services[name].Endpoints
		doc.Services[name] = svc
	}
	if !reflect.DeepEqual(got, doc) || entry.By != "goshield up" {
		t.Errorf("in force is %+v by %q, want %+v", got, entry.By, doc)
	}
	c := dial(t, f.device(t, nil))
	defer c.Close()
	until(t, time.Minute, "the echo service answers", func() bool {
		answer, err := c.Request(t.Context(), "echo", []byte(`1`))
		return err == nil && string(answer) == "1"
	})
	f.mendDocument() // nothing is left to mend: no version is written
	if entry, err := store.Current(t.Context()); err != nil || entry.Version != 2 || f.Found().Version != 2 {
		t.Errorf("in force is version %d (%v), want 2 still", entry.Version, err)
	}
}
