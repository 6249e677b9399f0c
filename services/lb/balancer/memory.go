package balancer

import (
	"math"
	"runtime"
	runtimemetrics "runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/services/lb/relay"
)

const (
	memoryLook    = 10 * time.Millisecond // how often the memory is looked at, while connections come
	memoryPart    = 0.9                   // of GOMEMLIMIT, above which there is little left
	memoryCollect = time.Second           // between two garbage collections that are asked for
	backlogPart   = 0.75                  // of what GOMEMLIMIT leaves at the start, that bytes which wait for slow readers may take
	heldPart      = 0.875                 // of that, above which there is little left
)

// memory tells when the process has little left of what GOMEMLIMIT grants it, or the engine of what it may hold. What takes
// memory is, in the main, bytes that clients are slow to read: to serve those that are there, others are refused. The engine may
// not hold all there is: connections that are there, all stalling at once, could have the process killed.
type memory struct {
	// Static after construction.
	start time.Time
	stats func() relay.Stats

	looked atomic.Int64 // nanoseconds since start; 0: never
	little atomic.Bool  // at the last look

	collected  atomic.Int64 // when a collection was last asked for, nanoseconds since start; 0: never
	collecting sync.WaitGroup
}

func newMemory(stats func() relay.Stats) *memory { return &memory{start: time.Now(), stats: stats} }

// short reports whether there is little left. It costs nothing but the time of day, save for one call each memoryLook.
func (m *memory) short() bool {
	now := max(1, int64(time.Since(m.start)))
	if last := m.looked.Load(); (last == 0 || now-last >= int64(memoryLook)) && m.looked.CompareAndSwap(last, now) {
		used, limit := memoryUse()
		little := float64(used) > memoryPart*float64(limit)
		if little {
			m.collect(now)
		}
		s := m.stats()
		m.little.Store(little || float64(s.Held) > heldPart*float64(s.MayHold))
	}
	return m.little.Load()
}

// collect has the garbage collected. What is in use counts what nobody needs any more until then, and who refuses
// connections allocates little: by itself the runtime might collect only two minutes later.
func (m *memory) collect(now int64) {
	if last := m.collected.Load(); last == 0 || now-last >= int64(memoryCollect) {
		if m.collected.CompareAndSwap(last, now) {
			m.collecting.Go(runtime.GC)
		}
	}
}

// wait returns when no collection is under way. short is not called any more.
func (m *memory) wait() { m.collecting.Wait() }

// backlogMemory is how many bytes the engine may hold for slow readers; 0: as many as it thinks fit.
func backlogMemory() int64 {
	used, limit := memoryUse()
	if limit == math.MaxInt64 {
		return 0
	}
	return max(1, int64(backlogPart*float64(limit-min(used, limit))))
}

// memoryUse is how many bytes the process has in use, without those that it could give back, and how many it
// may have.
func memoryUse() (used, limit uint64) {
	samples := [...]runtimemetrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/gomemlimit:bytes"},
	}
	runtimemetrics.Read(samples[:])
	total, released, free := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64()
	return total - min(total, released+free), samples[3].Value.Uint64()
}
