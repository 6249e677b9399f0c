package stack

// RELIABILITY row 20 for gateways: devices that come and go, tokens that rotate, pushes, changes of the
// configuration and a gateway's restart leave nothing behind.

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/internal/configdb"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/client"
)

// TestSoak lets everything go on for a while, looks what the process holds when it has come to rest, and does
// so again for nine times as long: descriptors, goroutines and memory are to end within five percent.
func TestSoak(t *testing.T) {
	devices, length := 60, 24*time.Second
	if long {
		devices, length = 200, 10*time.Minute
	}
	f := startLogging(t, Config{Gateways: 2, DataDir: t.TempDir(), Document: quickDocument()}, zapcore.WarnLevel)
	s := newSoak(t, f, devices)
	s.run(t, max(length/10, 6*time.Second))
	before := s.takeStock(t)
	s.run(t, length-length/10)
	after := s.takeStock(t)
	after.wantLike(t, before)
	s.check(t)
	t.Attr("descriptors", fmt.Sprintf("%d, then %d", before.descriptors, after.descriptors))
	t.Attr("goroutines", fmt.Sprintf("%d, then %d", before.goroutines, after.goroutines))
	t.Attr("heap_and_stacks", fmt.Sprintf("%.1f MiB, then %.1f MiB", before.mebibytes(), after.mebibytes()))
	t.Attr("gone_through", fmt.Sprintf("%d requests, %d connections, %d tokens rotated, %d pushes acknowledged, %d changes of the configuration, 2 gateway restarts",
		s.requests.Load(), s.connections.Load(), s.rotations.Load(), s.acknowledged.Load(), s.changes.Load()))
}

// soak is a fleet with everything going on.
type soak struct {
	*fleet
	push    string // secret
	store   *configdb.Store
	doc     dynamic.Document // that it began with
	devices []*soakDevice

	requests, connections, rotations, pushes, acknowledged, changes atomic.Int64

	mu     sync.Mutex
	faults []error
}

// soakDevice is one device over all its connections.
type soakDevice struct {
	cfg client.Config

	mu       sync.Mutex
	received map[string]bool // pushes not known to be acknowledged yet
}

func newSoak(t *testing.T, f *fleet, devices int) *soak {
	t.Helper()
	s := &soak{fleet: f, push: f.secret(t, f.secrets.Push), store: configdb.New(redisOf(t, f)), doc: f.document()}
	for range devices {
		d := &soakDevice{cfg: f.device(t, client.MemoryStore()), received: map[string]bool{}}
		d.cfg.KeepDialing = true
		d.cfg.BackoffBase, d.cfg.BackoffCap = 50*time.Millisecond, time.Second
		d.cfg.OnPush = func(p client.Push) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.received[string(p.Body)] = true
		}
		d.cfg.Hooks.OnRotate = func() { s.rotations.Add(1) }
		s.devices = append(s.devices, d)
	}
	return s
}

// run has everything go on for so long, with one gateway replaced meanwhile, and returns when all has
// ended.
func (s *soak) run(t *testing.T, length time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var working sync.WaitGroup
	for _, d := range s.devices {
		working.Go(func() { s.live(ctx, d) })
	}
	working.Go(func() { s.pushAll(ctx, t) })
	working.Go(func() { s.configure(ctx) })
	sleep(ctx, length/2)
	draining, cancelDrain := context.WithTimeout(t.Context(), time.Minute)
	defer cancelDrain()
	if err := s.DrainGateway(draining, 1); err != nil {
		t.Errorf("drain: %v", err)
	}
	if err := s.StartGateway(1); err != nil {
		t.Fatal(err)
	}
	working.Wait()
}

// fault notes what should not have happened.
func (s *soak) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Errorf(format, args...))
}

// live connects a device again and again, seldom enough not to be put in quarantine. It ends with ctx.
func (s *soak) live(ctx context.Context, d *soakDevice) {
	for ctx.Err() == nil {
		dialing, cancel := context.WithTimeout(context.Background(), time.Minute)
		c, err := client.Dial(dialing, d.cfg)
		cancel()
		if err != nil {
			s.fault("connect: %w", err)
			return
		}
		s.connections.Add(1)
		for until := time.Now().Add(6*time.Second + rand.N(6*time.Second)); time.Now().Before(until) && ctx.Err() == nil; {
			s.ask(c)
			sleep(ctx, rand.N(400*time.Millisecond))
			if rand.N(10) == 0 {
				sleep(ctx, time.Second) // long enough to be parked
			}
		}
		if err := c.Close(); err != nil {
			s.fault("close: %w", err)
		}
	}
}

// ask sends a request, which must be answered: nothing that goes on here is a reason not to.
func (s *soak) ask(c *client.Client) {
	body := fmt.Sprintf(`{"n":%d}`, s.requests.Add(1))
	answer, err := c.Request(context.Background(), "echo", []byte(body))
	if err != nil || string(answer) != body {
		s.fault("request: got %s, %v; want %s", answer, err, body)
	}
}

// pushAll pushes to devices at random. What is answered as acknowledged, the device has got. It ends with ctx.
func (s *soak) pushAll(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		d := s.devices[rand.N(len(s.devices))]
		body := fmt.Sprintf(`{"push":%d}`, s.pushes.Add(1))
		status, text := call(t, http.MethodPost, "http://"+s.PushAddr()+"/v1/devices/"+d.cfg.ClientID.String()+"/messages", s.push,
			`{"service":"alarm","body":`+body+`,"wait_ms":5000}`)
		d.mu.Lock()
		got := d.received[body]
		delete(d.received, body)
		d.mu.Unlock()
		switch {
		case status == http.StatusOK && got:
			s.acknowledged.Add(1)
		case status == http.StatusOK:
			s.fault("push %s was acknowledged, and the device has not got it", body)
		case status == http.StatusNotFound, status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout:
			// The device, or its gateway, has just left.
		default:
			s.fault("push: %d %s", status, text)
		}
		sleep(ctx, rand.N(50*time.Millisecond))
	}
}

// configure changes the document over and over: a number, and a service that comes and goes at the endpoints of
// another. It ends with ctx.
func (s *soak) configure(ctx context.Context) {
	for ctx.Err() == nil {
		if err := s.change(); err != nil {
			s.fault("change the configuration: %w", err)
			return
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

func (s *soak) change() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	n := s.changes.Load()
	doc := s.doc
	doc.MaxInFlight = 20 + int(n%10)
	if n%2 == 0 {
		services := map[string]dynamic.Service{"extra": doc.Services["echo"]}
		for name, svc := range doc.Services {
			services[name] = svc
		}
		doc.Services = services
	}
	if _, err := s.store.Put(ctx, doc, n, "test"); err != nil {
		return err
	}
	s.changes.Add(1)
	return nil
}

// check wants nothing to have gone wrong, and enough to have gone on.
func (s *soak) check(t *testing.T) {
	t.Helper()
	for i, err := range s.faults {
		if i == 10 {
			t.Errorf("and %d faults more", len(s.faults)-i)
			break
		}
		t.Error(err)
	}
	for what, n := range map[string]int64{
		"requests": s.requests.Load(), "rotations": s.rotations.Load(), "connections": s.connections.Load() - int64(2*len(s.devices)),
		"acknowledged pushes": s.acknowledged.Load(), "changes": s.changes.Load(),
	} {
		if n < 10 {
			t.Errorf("%d %s: this tests little", n, what)
		}
	}
}

// sleep waits, until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// stock is what the process holds when nothing goes on.
type stock struct {
	descriptors, goroutines int
	bytes                   uint64 // of live heap and stacks
}

func (s stock) mebibytes() float64 { return float64(s.bytes) / (1 << 20) }

// takeStock waits until everything has come to rest. Connections that gateways keep to auth-service for 90 s, as
// many as calls were ever under way at once, end with a restart of it; those to each other are waited for in a long run.
func (s *soak) takeStock(t *testing.T) stock {
	t.Helper()
	if long {
		<-time.After(100 * time.Second)
	}
	atRest(t)
	s.KillAuth()
	if err := s.StartAuth(); err != nil {
		t.Fatal(err)
	}
	now := atRest(t)
	now.goroutines -= keptWorkers(t)
	now.bytes = liveBytes()
	return now
}

// keptWorkers is how many goroutines the backends keep for their next requests: as many as ever worked at once, 128 each at
// most. A busy moment of the machine decides how many that is.
func keptWorkers(t *testing.T) (n int) {
	t.Helper()
	var text strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&text, 1); err != nil { // "2 @ addresses", and the calls, of each kind
		t.Fatal(err)
	}
	_, kinds, _ := strings.Cut(text.String(), "\n") // the total
	for kind := range strings.SplitSeq(kinds, "\n\n") {
		var count int
		if strings.Contains(kind, "sdk/backend.(*workers).run") {
			if _, err := fmt.Sscanf(kind, "%d @", &count); err != nil {
				t.Fatalf("%v in %q", err, kind)
			}
			n += count
		}
	}
	if n == 0 {
		t.Error("no worker of a backend is known by its name any more")
	}
	return n
}

// liveBytes is what is alive after a collection, and once more after what was in pools has gone: the least of some
// tries, since a little is allocated all the time.
func liveBytes() uint64 {
	least := uint64(math.MaxUint64)
	for range 8 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		least = min(least, m.HeapAlloc+m.StackInuse)
		<-time.After(50 * time.Millisecond)
	}
	return least
}

// atRest waits until nothing changes for a second.
func atRest(t *testing.T) stock {
	t.Helper()
	var last stock
	calm := 0
	until(t, time.Minute, "the process comes to rest", func() bool {
		now := stock{descriptors: openDescriptors(t), goroutines: runtime.NumGoroutine()}
		if now == last {
			calm++
		} else {
			calm = 0
		}
		last = now
		return calm >= 50
	})
	return last
}

// wantLike allows for five percent. A short run has not settled when it is looked at first, and is small: there a few connections to Redis
// and between services, with their goroutines and buffers, that are kept for the next use, as many as were used at once, are more than that.
func (s stock) wantLike(t *testing.T, before stock) {
	t.Helper()
	spare, spareBytes := 16, uint64(2<<20)
	if long {
		spare, spareBytes = 0, 0
	}
	if s.descriptors > before.descriptors*21/20+spare || s.goroutines > before.goroutines*21/20+2*spare || s.bytes > before.bytes*21/20+spareBytes {
		t.Errorf("at rest %+v at the end, %+v before: something leaks", s, before)
	}
}

// openDescriptors is 0 where the system does not tell.
func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}
