package gateway

// Twice what a gateway can carry: RELIABILITY row 17. The gateway has half of one core, and everything else another one: what
// gives way is the gateway.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/goshield/goshield/sdk/wire"
)

const (
	crowdSize = 100
	// crowdPatience is how long after it was due an answer is good for anything. What cannot be sent within half of that is
	// given up: sent, it would be answered too late.
	crowdPatience = time.Second
	crowdTurn     = 4 * time.Millisecond
	crowdBody     = `{"meter":"0123456789","reading":12345.678,"unit":"kWh","ok":1}`
)

// TestTwiceWhatAGatewayCarries: devices ask on, whether they are answered or not, and twice as often as the gateway has the
// processor for. As many requests are answered in time as at the rate at which most are.
func TestTwiceWhatAGatewayCarries(t *testing.T) {
	if !long {
		t.Skip("two cores that nobody else uses are needed")
	}
	const share, windows, span = 0.9, 7, 2 * time.Second
	mine, its := twoCores(t)
	w := newWorld(t, testDoc())
	stayOn(t, mine)
	c := w.crowd(its)
	// The rate at which most are answered: where a tenth more brings no more.
	_, most := c.offer(100_000, time.Second)
	peak := 0.7 * most
	for rate := peak; ; rate *= 1.1 {
		_, good := c.offer(rate, time.Second)
		if good > most {
			most = good
		}
		if good < 0.95*rate {
			break
		}
		peak = rate
	}
	var at, over, ratio, busy []float64
	for range windows {
		_, good := c.offer(peak, span)
		at = append(at, good)
		cpu, good := c.offer(2*most, span)
		over, busy = append(over, good), append(busy, cpu)
		ratio = append(ratio, good/at[len(at)-1])
	}
	goodput := median(ratio) // of windows side by side: what else the machine does falls on both
	t.Logf("answered in time a second: %.0f at %.0f/s, %.0f at %.0f/s, for which the gateway took %.2f of a core; medians of %.0f and %.0f",
		median(at), peak, median(over), 2*most, median(busy), at, over)
	t.Attr("goodput_at_twice_the_peak", fmt.Sprintf("%.2f: %.0f/s of %.0f/s", goodput, median(over), median(at)))
	if goodput < share {
		t.Errorf("%.2f of the peak's requests are answered in time, want at least %v", goodput, share)
	}
	sum := c.now()
	t.Logf("in all: %+v", sum)
	if sum.Lost != 0 || sum.Wrong != 0 {
		t.Errorf("%d connections lost, %d wrong answers; want none", sum.Lost, sum.Wrong)
	}
	if median(busy) < 0.4 || sum.Expired == 0 {
		t.Errorf("the gateway took %.2f of a core, and %d requests had to be kept back: it was not what gave way", median(busy), sum.Expired)
	}
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// crowd is devices that are due to ask at a rate of them all. As devices do, each has up to max_in_flight requests
// unanswered, and keeps back what is due beyond.
type crowd struct {
	t        testing.TB
	begun    time.Time
	child    *child
	inFlight int // requests of each, at most
	askers   []*asker
	crowdCounts
}

type crowdCounts struct{ good, late, refused, expired, wrong, lost atomic.Int64 }

// crowdSum is the counts at one moment.
type crowdSum struct{ Good, Late, Refused, Expired, Wrong, Lost int64 }

func (c *crowdCounts) now() crowdSum {
	return crowdSum{c.good.Load(), c.late.Load(), c.refused.Load(), c.expired.Load(), c.wrong.Load(), c.lost.Load()}
}

// asker is one of them. Times are since the crowd's beginning.
type asker struct {
	*device
	crowd  *crowd
	frames []byte // of the sender
	due    []time.Duration
	next   uint32

	mu      sync.Mutex
	waiting map[uint32]time.Duration // by id: when it was due
}

// crowd connects one to a gateway that has this core, and half of it at most: to ask costs no less than to be asked, and the
// devices have one core. Both end with the test.
func (w *world) crowd(core int) *crowd {
	w.t.Helper()
	c := &crowd{t: w.t, begun: time.Now(), inFlight: w.doc.MaxInFlight}
	onCore(w.t, core, func() {
		c.child = w.child(w.t.(*testing.T))
		busy := exec.Command("sh", "-c", "while :; do :; done")
		if err := busy.Start(); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = busy.Process.Kill(); _ = busy.Wait() })
	})
	first := w.enrolledAt(c.child.addr, clientID(250))
	first.served()
	var reading sync.WaitGroup
	w.t.Cleanup(reading.Wait)
	for i := range crowdSize {
		d, in := w.introduced(c.child.addr, clientID(byte(i+1)))
		a := &asker{device: d, crowd: c, waiting: map[uint32]time.Duration{}}
		c.askers = append(c.askers, a)
		reading.Go(func() { a.read(in) })
		w.t.Cleanup(func() { _ = d.conn.Close() })
	}
	return c
}

// offer has requests due at that rate, until what comes of them has been seen for so long. It tells how much of its core the
// gateway took, and how many requests a second were answered in time.
func (c *crowd) offer(rate float64, span time.Duration) (cpu, good float64) {
	c.t.Helper()
	const settle = crowdPatience // after which what is kept back is being given up
	tick := time.NewTicker(crowdTurn)
	defer tick.Stop()
	begun, due := time.Since(c.begun), 0
	var seen time.Duration // since when
	var before crowdSum
	var used time.Duration
	for ; ; <-tick.C {
		now := time.Since(c.begun)
		if seen == 0 && now-begun >= settle {
			used, before, seen = c.child.report().CPU, c.now(), now
		}
		if seen != 0 && now-seen >= span {
			seconds := (now - seen).Seconds()
			cpu, good = (c.child.report().CPU-used).Seconds()/seconds, float64(c.now().Good-before.Good)/seconds
			break
		}
		for ; float64(due)/rate < (now - begun).Seconds(); due++ {
			a := c.askers[due%len(c.askers)]
			a.due = append(a.due, begun+time.Duration(float64(due)/rate*float64(time.Second)))
		}
		for _, a := range c.askers {
			a.send(now)
		}
	}
	for _, a := range c.askers {
		a.due = nil
		eventually(c.t, "what was sent is answered", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return len(a.waiting) == 0
		})
	}
	return cpu, good
}

// send sends what is due, as far as it may.
func (a *asker) send(now time.Duration) {
	a.frames = a.frames[:0]
	a.mu.Lock()
	for len(a.due) > 0 && now-a.due[0] > crowdPatience/2 {
		a.due = a.due[1:]
		a.crowd.expired.Add(1)
	}
	for len(a.due) > 0 && len(a.waiting) < a.crowd.inFlight {
		due := a.due[0]
		a.due = a.due[1:]
		a.next++
		a.waiting[a.next] = due
		a.frames, _ = wire.Append(a.frames, a.version, &wire.Request{ID: a.next, Token: a.token, Service: "echo", Body: []byte(crowdBody)})
	}
	a.mu.Unlock()
	if len(a.frames) > 0 {
		a.write(a.frames)
	}
}

// read takes answers until the connection ends.
func (a *asker) read(in *wire.Reader) {
	for {
		f, err := in.Next()
		if err != nil {
			a.crowd.lost.Add(1)
			return
		}
		var r wire.Response
		var e wire.Error
		now := time.Since(a.crowd.begun)
		switch {
		case f.Type == wire.TypeResponse && wire.Unmarshal(f.Version, f.Payload, &r) == nil:
			switch due, ok := a.answered(r.ID); {
			case !ok || string(r.Body) != crowdBody:
				a.crowd.wrong.Add(1)
			case now-due > crowdPatience:
				a.crowd.late.Add(1)
			default:
				a.crowd.good.Add(1)
			}
		case f.Type == wire.TypeError && wire.Unmarshal(f.Version, f.Payload, &e) == nil && e.HasID && !e.Close:
			a.answered(e.ID)
			a.crowd.refused.Add(1)
		default:
			a.crowd.wrong.Add(1)
		}
	}
}

func (a *asker) answered(id uint32) (due time.Duration, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	due, ok = a.waiting[id]
	delete(a.waiting, id)
	return due, ok
}

// twoCores are two that this process may run on.
func twoCores(t *testing.T) (one, other int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	var all []int
	for core := range len(set) * 64 {
		if set.IsSet(core) {
			all = append(all, core)
		}
	}
	if len(all) < 2 {
		t.Skip("there is one core only")
	}
	return all[0], all[1]
}

// stayOn keeps this process on one core until the test ends.
func stayOn(t *testing.T, core int) {
	t.Helper()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	one.Set(core)
	t.Cleanup(func() { allThreads(t, &before) })
	allThreads(t, &one)
}

// allThreads has all threads run on these cores: those to come inherit it.
func allThreads(t *testing.T, set *unix.CPUSet) {
	t.Helper()
	for range 2 { // again, for those that were begun meanwhile
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err == nil {
				err = unix.SchedSetaffinity(id, set)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
				t.Fatal(err)
			}
		}
	}
}

// onCore calls start, which starts a process: it inherits the core of the thread that it is started from.
func onCore(t testing.TB, core int, start func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	one.Set(core)
	if err := errors.Join(unix.SchedGetaffinity(0, &before), unix.SchedSetaffinity(0, &one)); err != nil {
		t.Fatal(err)
	}
	start()
	if err := unix.SchedSetaffinity(0, &before); err != nil {
		t.Fatal(fmt.Errorf("sched_setaffinity: %w", err))
	}
}
