package backend

import (
	"sync"
	"sync/atomic"
)

// maxIdle is how many workers are kept for the next requests.
const maxIdle = 128

// workers runs calls, each on a goroutine of its own, and keeps some goroutines that
// have finished: a stack that has grown once need not grow again. The calls
// are bounded by their links.
type workers struct {
	work chan *call // unbuffered: a send succeeds only if a worker waits
	idle atomic.Int32
	all  sync.WaitGroup
	once sync.Once // of stop
}

func (w *workers) init() { w.work = make(chan *call) }

// do runs c on a worker. It does not block.
func (w *workers) do(c *call) {
	select {
	case w.work <- c:
	default:
		w.all.Add(1)
		go w.run(c) // ends when enough others are idle, and with stop
	}
}

func (w *workers) run(c *call) {
	defer w.all.Done()
	for ok := true; ok; {
		c.run()
		if w.idle.Add(1) > maxIdle {
			w.idle.Add(-1)
			return
		}
		c, ok = <-w.work
		w.idle.Add(-1)
	}
}

// stop waits for the calls that run and ends the workers. do must not be
// called any more.
func (w *workers) stop() {
	w.once.Do(func() { close(w.work) })
	w.all.Wait()
}
