package gateway

// RELIABILITY rows 26 and 29, with devices: backends that lie, dawdle, send garbage, break off and die. Every
// answer is its request's, and no device loses its connection by it.

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// hostileTimeout is the services', at first.
const hostileTimeout = time.Second

// ordeal is the whole of it: the same for all its backends and devices.
type ordeal struct {
	devices, each int // requests of a device
	breakEvery    int // requests between two links that a backend breaks
	kills         int // of backends, one after the other

	asked    atomic.Int64 // requests that reached a backend
	ended    atomic.Int64 // requests that were answered, by whatever
	answered atomic.Int64 // with their body
	failed   sync.Map     // wire.Code to *atomic.Int64

	executed [][]atomic.Uint32 // times that a request which must not be repeated reached a backend: by device and number
}

// A request is known by its device and its number, an answer by the request and the
// client_id that the backend was told.

func hostileID(device int) (id wire.ClientID) {
	id[0] = 0xde
	binary.BigEndian.PutUint32(id[4:], uint32(device))
	return id
}

func hostileBody(device, n int) []byte { return fmt.Appendf(nil, `[%d,%d]`, device, n) }

func hostileAnswer(id wire.ClientID, body []byte) []byte {
	return fmt.Appendf(nil, `["%s",%s]`, hex.EncodeToString(id[:8]), body)
}

// hostileService is the one that request n asks: half of them may be sent again.
func hostileService(n int) string { return []string{"once", "again"}[n%2] }

// note counts a request that must not come twice.
func (o *ordeal) note(req link.Request) {
	if req.Service != "once" {
		return
	}
	var at [2]int
	if json.Unmarshal(req.Body, &at) == nil {
		o.executed[at[0]][at[1]].Add(1)
	}
}

func TestHostileBackends(t *testing.T) {
	// On a machine that is short of time honest answers, too, take longer than a second: then services have more.
	for timeout := hostileTimeout; !withstand(t, timeout); timeout *= 5 {
		if timeout > 20*time.Second {
			t.Fatalf("with a timeout of %v less than half of the requests were answered with their body: this tests little", timeout)
		}
	}
}

// withstand reports whether most requests were answered with their body.
func withstand(t *testing.T, timeout time.Duration) bool {
	t.Helper()
	o := &ordeal{devices: 100, each: 200, breakEvery: 2000, kills: 6}
	if long {
		o = &ordeal{devices: 2000, each: 500, breakEvery: 10_000, kills: 60}
	}
	o.executed = make([][]atomic.Uint32, o.devices+spareDevices)
	for i := range o.executed {
		o.executed[i] = make([]atomic.Uint32, o.each)
	}
	var backends []*hostileBackend
	var endpoints []string
	for i := range 3 { // addresses that nobody else takes while a backend is down
		b := newHostileBackend(t, o, fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), i+1))
		backends = append(backends, b)
		endpoints = append(endpoints, b.addr)
	}
	doc := testDoc()
	doc.Heartbeat.Interval = 0 // these devices have other things to do
	w := newWorld(t, doc)
	once := dynamic.Service{Endpoints: endpoints, Timeout: dynamic.Duration(timeout)}
	again := once
	again.Idempotent = true
	w.doc.Services = map[string]dynamic.Service{"once": once, "again": again}
	cfg := w.config("gw-1")
	cfg.TLS.Mode = tlsOff
	reg := prometheus.NewRegistry()
	s, err := New(cfg, service.Deps{Log: zap.NewNop(), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	wantLinks := func(when string) {
		t.Helper()
		eventually(t, when+", each backend has the links of one service, not of two", func() bool {
			for _, b := range backends {
				if b.links() != 2 {
					return false
				}
			}
			return true
		})
	}
	wantLinks("before")

	began := time.Now()
	faults := o.run(t, s.Addr(), backends)
	took := time.Since(began)
	// A kill may have ended each request that was to be answered too late.
	devices := o.devices
	for ; devices < o.devices+spareDevices && (!o.sawFailure(wire.CodeBackendTimeout) || dropped(t, reg, "late") == 0); devices++ {
		conn, err := net.DialTimeout("tcp", s.Addr(), patience)
		if err = o.ask(conn, err, devices); err != nil {
			faults = append(faults, err)
		}
	}
	for i, err := range faults {
		if i == 10 {
			t.Errorf("and %d devices more", len(faults)-i)
			break
		}
		t.Error(err)
	}
	requests := int64(devices * o.each)
	if n := o.ended.Load(); n != requests {
		t.Errorf("%d requests ended, want %d", n, requests)
	}
	o.checkFailures(t)
	for device := range o.executed {
		for n := range o.executed[device] {
			if times := o.executed[device][n].Load(); times > 1 {
				t.Errorf("request %d of device %d, which is not to be repeated, was sent %d times", n, device, times)
			}
		}
	}
	for _, reason := range []string{"late", "unknown"} {
		eventually(t, "answers are dropped as "+reason, func() bool { return dropped(t, reg, reason) > 0 })
	}
	wantLinks("after")
	if o.answered.Load() < requests/2 {
		return false
	}
	t.Attr("requests", fmt.Sprintf("%d of %d devices in %v", requests, o.devices, took.Round(time.Second/10)))
	t.Attr("answered_with_their_body", fmt.Sprintf("%d, none with another's", o.answered.Load()))
	t.Attr("device_connections_lost", fmt.Sprintf("%d of %d", len(faults), o.devices))
	return true
}

// dropped is how many answers the gateway has dropped for that reason.
func dropped(t *testing.T, reg *prometheus.Registry, reason string) (n float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "goshield_backend_dropped_answers_total" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "reason" && l.GetValue() == reason {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

// run has all devices ask, and backends die meanwhile. It returns what went wrong.
func (o *ordeal) run(t *testing.T, addr string, backends []*hostileBackend) (faults []error) {
	var mu sync.Mutex
	var asking sync.WaitGroup
	dialing := make(chan struct{}, 32)
	for device := range o.devices {
		asking.Go(func() { // ends with its last answer, or its connection
			dialing <- struct{}{}
			conn, err := net.DialTimeout("tcp", addr, patience)
			<-dialing
			if err = o.ask(conn, err, device); err != nil {
				mu.Lock()
				defer mu.Unlock()
				faults = append(faults, err)
			}
		})
	}
	ended := make(chan struct{})
	go func() { asking.Wait(); close(ended) }()
	o.killAll(t, backends, ended)
	<-ended
	return faults
}

// spareDevices ask one after the other, when no backend is killed any more, as long as something was not seen yet.
const spareDevices = 10

func (o *ordeal) sawFailure(code wire.Code) bool {
	_, seen := o.failed.Load(code)
	return seen
}

// killAll kills a backend each time that another part of the requests has ended.
func (o *ordeal) killAll(t *testing.T, backends []*hostileBackend, ended <-chan struct{}) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	part := int64(o.devices*o.each) / int64(o.kills+1)
	for i := range o.kills {
		for o.ended.Load() < part*int64(i+1) {
			select {
			case <-tick.C:
			case <-ended:
				t.Errorf("%d kills, want %d: the devices ended first", i, o.kills)
				return
			}
		}
		b := backends[i%len(backends)]
		b.kill()
		time.Sleep(50 * time.Millisecond) // the others serve meanwhile
		b.restart(t)
	}
}

// checkFailures wants errors of those kinds, each of them, and no others.
func (o *ordeal) checkFailures(t *testing.T) {
	t.Helper()
	o.failed.Range(func(code, count any) bool {
		n := count.(*atomic.Int64).Load()
		t.Logf("%d requests ended with %s", n, code)
		switch code {
		case wire.CodeBackendUnavailable, wire.CodeBackendTimeout, wire.CodeBackendError:
		default:
			t.Errorf("%d requests ended with %s", n, code)
		}
		return true
	})
	for _, code := range []wire.Code{wire.CodeBackendUnavailable, wire.CodeBackendTimeout, wire.CodeBackendError} {
		if !o.sawFailure(code) {
			t.Errorf("no request ended with %s: this tests little", code)
		}
	}
}
