package relay_test

// Random traffic, for long, through each of the engines: what arrives, what is left behind.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/services/lb/relay"
)

// engine is what the soak needs of either package's.
type engine interface {
	Serve(ln *net.TCPListener, d relay.Director) error
	Connections() int
	Stats() relay.Stats
	Wait(ctx context.Context) error
	Close()
}

// soakSettings are the engines'.
var soakSettings = relay.Settings{ConnectTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute}

const (
	talkers = 24 // conversations at once, through each engine
	// killEvery is how many conversations, or more, end between two kills of an upstream: several times as many as
	// one kill can break, on however slow a machine.
	killEvery = 5 * talkers
	heapLimit = 192 << 20 // bytes in use, of the whole test, at any time
)

// TestSoak has clients talk through every engine at once, in random sizes and pieces, with half-closes,
// resets, stalled readers, and upstreams that are killed. Every byte that arrives must be
// right; none may be missing where both ends closed cleanly; a reset must never look like an
// end; and after it there must be no more descriptors, goroutines and memory than after a
// short one. GOSHIELD_TEST_LONG=1 takes ten minutes instead of half of one.
func TestSoak(t *testing.T) {
	length := 30 * time.Second
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		length = 10 * time.Minute
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // the runtime's poller keeps descriptors of its own
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	empty := openDescriptors(t)
	t.Cleanup(func() {
		eventually(t, "every descriptor closed", func() bool { return openDescriptors(t) <= empty })
	})
	var soaks []*soak
	for name, e := range engines(soakSettings) {
		soaks = append(soaks, startSoak(t, name, e))
	}
	peak := watchPeak()
	run(soaks, length/10)
	before := takeStock(t)
	run(soaks, length-length/10)
	most := peak()
	after := awaitStock(t, before)
	t.Attr("descriptors", fmt.Sprintf("%d, then %d", before.descriptors, after.descriptors))
	t.Attr("goroutines", fmt.Sprintf("%d, then %d", before.goroutines, after.goroutines))
	t.Attr("heap", fmt.Sprintf("%d KiB, then %d KiB, at most %d MiB", before.heapKiB, after.heapKiB, most>>20))
	if most > heapLimit {
		t.Errorf("%d MiB of heap in use, want at most %d", most>>20, heapLimit>>20)
	}
	for _, s := range soaks {
		s.finish(t)
	}
}

// soak is an engine under random traffic between two upstreams and many clients.
type soak struct {
	engine
	name      string
	addr      string
	upstreams [2]*party

	conversations, broken atomic.Int64
	mu                    sync.Mutex
	faults                []error
}

func startSoak(t *testing.T, name string, e engine) *soak {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{engine: e, name: name, addr: ln.Addr().String(), upstreams: [2]*party{newParty(t), newParty(t)}}
	t.Cleanup(e.Close)
	if err := e.Serve(ln.(*net.TCPListener), s); err != nil {
		t.Fatal(err)
	}
	return s
}

// Admit implements relay.Director: each connection is tried four times, at both
// upstreams in turn.
func (s *soak) Admit(netip.AddrPort) relay.Placement {
	return &attempts{soak: s, next: rand.IntN(2)}
}

type attempts struct {
	soak       *soak
	next, done int
}

func (a *attempts) Next(error) (netip.AddrPort, bool) {
	a.next, a.done = a.next^1, a.done+1
	return a.soak.upstreams[a.next].addr, a.done <= 4
}

func (a *attempts) Observe(relay.Event, time.Duration) {}
func (a *attempts) Closed(relay.Result)                {}

// run has all soaks at work for a while, and returns when all is quiet.
func run(soaks []*soak, length time.Duration) {
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for _, s := range soaks {
		workers.Go(func() { s.kill(stop) })
		for range talkers {
			workers.Go(func() { s.talk(stop) })
		}
	}
	time.Sleep(length)
	close(stop)
	workers.Wait()
}

// talk has one conversation after the other until it is told to stop.
func (s *soak) talk(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		script := randomScript()
		kills := s.kills()
		err := converse(s.addr, script)
		s.conversations.Add(1)
		if err == nil {
			continue
		}
		s.broken.Add(1)
		if errors.Is(err, errWrongByte) || undisturbed(kills, s.kills()) {
			s.mu.Lock()
			s.faults = append(s.faults, fmt.Errorf("%+v: %w", script, err))
			s.mu.Unlock()
		}
	}
}

// kills is odd while one is going on, for they come one after the other.
func (s *soak) kills() (n int64) {
	for _, u := range s.upstreams {
		n += u.kills.Load()
	}
	return n
}

// kill kills one upstream after the other, each time that enough conversations have ended.
func (s *soak) kill(stop <-chan struct{}) {
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	next := s.conversations.Load() + killEvery
	for i := 0; ; {
		select {
		case <-stop:
			return
		case <-look.C:
			if s.conversations.Load() >= next {
				s.upstreams[i%2].kill()
				i, next = i+1, s.conversations.Load()+killEvery
			}
		}
	}
}

// finish checks what was heard, and ends the engine.
func (s *soak) finish(t *testing.T) {
	t.Helper()
	for _, err := range s.faults {
		t.Errorf("%s: client: %v", s.name, err)
	}
	for _, u := range s.upstreams {
		u.wrong(t, s.name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		t.Errorf("%s: %d connections left", s.name, s.Connections())
	}
	stats := s.Stats()
	n, broken := s.conversations.Load(), s.broken.Load()
	t.Attr(strings.ReplaceAll(s.name, " ", "_"), fmt.Sprintf("%d conversations, %d of them killed; %d MiB up, %d MiB down, %d MiB spliced",
		n, broken, stats.ToUpstream>>20, stats.ToClient>>20, stats.Spliced>>20))
	if n < 20 || broken*2 > n {
		t.Errorf("%s: %d conversations, %d of them killed: this tests little", s.name, n, broken)
	}
	s.Close()
}

// stock is what a process holds when nothing goes on.
type stock struct{ descriptors, goroutines, heapKiB int }

// takeStock waits for everything to come to rest.
func takeStock(t *testing.T) stock {
	t.Helper()
	var last stock
	for calm := 0; calm < 5; calm++ {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		now := stock{openDescriptors(t), runtime.NumGoroutine(), int(m.HeapAlloc >> 10)}
		if now.descriptors != last.descriptors || now.goroutines != last.goroutines {
			calm = 0
		}
		last = now
		time.Sleep(20 * time.Millisecond)
	}
	return last
}

// like allows for what an engine keeps for the next use: sixteen pipes, a few MiB of buffers.
func (s stock) like(before stock) bool {
	return s.descriptors <= before.descriptors*21/20+32 && s.goroutines <= before.goroutines*21/20 && s.heapKiB <= before.heapKiB*21/20+4<<10
}

// awaitStock waits until there is no more than before: some connections may take their time to end.
func awaitStock(t *testing.T, before stock) stock {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		now := takeStock(t)
		if now.like(before) {
			return now
		}
		if time.Now().After(deadline) {
			t.Errorf("at rest %+v at the end, %+v at the start: something leaks", now, before)
			return now
		}
	}
}

// watchPeak samples the heap in use until the function it returns is called, which gives the most there was.
func watchPeak() (most func() uint64) {
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() { // ends when most is called
		var highest uint64
		again := time.NewTicker(100 * time.Millisecond)
		defer again.Stop()
		for {
			select {
			case <-again.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				highest = max(highest, m.HeapInuse)
			case <-stop:
				peak <- highest
				return
			}
		}
	}()
	return func() uint64 {
		close(stop)
		return <-peak
	}
}

// patience is how long a test waits for what must happen.
const patience = time.Minute

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(10 * time.Millisecond)
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
