package balancer

import (
	"runtime"
	runtimemetrics "runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

const (
	memoryLook    = 10 * time.Millisecond // how often the memory is looked at, while connections come
	memoryPart    = 0.9                   // of GOMEMLIMIT, above which there is little left
	memoryCollect = time.Second           // between two garbage collections that are asked for
)

// memory tells when the process has little left of what GOMEMLIMIT grants it. What takes it is, in the main,
// bytes that clients are slow to read: to serve those that are there, others are refused.
type memory struct {
	start  time.Time    // static after construction
	looked atomic.Int64 // nanoseconds since start; 0: never
	little atomic.Bool  // at the last look

	collected  atomic.Int64 // when a collection was last asked for, nanoseconds since start; 0: never
	collecting sync.WaitGroup
}

func newMemory() *memory { return &memory{start: time.Now()} }

// short reports whether there is little left. It costs nothing but the time of day, save for one call each memoryLook.
func (m *memory) short() bool {
	now := max(1, int64(time.Since(m.start)))
	if last := m.looked.Load(); (last == 0 || now-last >= int64(memoryLook)) && m.looked.CompareAndSwap(last, now) {
		used, limit := memoryUse()
		m.little.Store(float64(used) > memoryPart*float64(limit))
		if m.little.Load() {
			m.collect(now)
		}
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
