package token

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// maxSending is how many pipelines of one lane are under way at once. Others are made up while Redis executes
	// the first.
	maxSending = 3
	// maxBatch is how many commands one pipeline has at most. With all that wait in two large ones, the callers stood
	// still together and went on together: Redis, this process and its clients took turns, each idle
	// while another worked. With a few small ones all three are at work: half as many operations a second again.
	maxBatch = 32
	// maxConfirmed is the same where a pipeline waits for a replica, which takes as long for many as for one.
	maxConfirmed = 128
)

// batches sends the commands that many callers have for one server at about the same time in one pipeline, with one WAIT
// for all that need it. A caller that finds fewer than maxSending pipelines under way sends its command at once, so
// nobody waits for company; who comes meanwhile goes with the next one. The callers themselves do the sending, one for all, in turn:
// there is no goroutine of its own. The queue is as long as there are callers.
type batches struct {
	mu    sync.Mutex
	lanes map[lane]*queue // those with something to do
}

// lane is what may share a pipeline: commands that wait for a replica would hold the others up.
type lane struct {
	to   *redis.Client
	wait time.Duration // of the WAIT; 0: none
}

// most is how many commands a pipeline of the lane has at most.
func (l lane) most() int {
	if l.wait > 0 {
		return maxConfirmed
	}
	return maxBatch
}

// queue is one lane's. It is guarded by the lock of batches.
type queue struct {
	sending int      // pipelines under way, and callers who are to send the next one
	waiting []*order // in the order of their coming
}

// order is one caller's command and what became of it.
type order struct {
	queue func(context.Context, redis.Pipeliner) redis.Cmder
	turn  chan bool // true: send what is waiting, this order first; false: it was sent, here is the result

	cmd       redis.Cmder // with its own error
	confirmed bool        // a replica has it
}

func newBatches() *batches { return &batches{lanes: map[lane]*queue{}} }

// do sends a command, alone or with others. confirmed is true if the lane waits and a replica has the command. The error
// is the command's own; a WAIT that fails leaves it unconfirmed. When ctx ends while the command is under way, it may or may
// not be executed.
func (b *batches) do(ctx context.Context, l lane, queue func(context.Context, redis.Pipeliner) redis.Cmder) (redis.Cmder, bool, error) {
	o := &order{queue: queue, turn: make(chan bool, 1)}
	if !b.join(l, o) {
		select {
		case first := <-o.turn:
			if !first {
				return o.cmd, o.confirmed, o.cmd.Err()
			}
		case <-ctx.Done():
			b.leave(l, o)
			return nil, false, ctx.Err()
		}
	}
	batch := b.take(l, o)
	batch.send(ctx, l)
	b.next(l)
	for _, other := range batch[1:] {
		other.turn <- false
	}
	return o.cmd, o.confirmed, o.cmd.Err()
}

// join reports whether the caller is to send at once. If not, its order waits.
func (b *batches) join(l lane, o *order) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.lanes[l]
	if q == nil {
		q = &queue{}
		b.lanes[l] = q
	}
	if q.sending == maxSending {
		q.waiting = append(q.waiting, o)
		return false
	}
	q.sending++
	return true
}

// take makes a batch of an order, whose caller is to send, and those that wait.
func (b *batches) take(l lane, o *order) batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.lanes[l]
	n := min(len(q.waiting), l.most()-1)
	taken := append(batch{o}, q.waiting[:n]...)
	q.waiting = slices.Delete(q.waiting, 0, n)
	return taken
}

// next hands the right to send to who has waited longest, if anybody has.
func (b *batches) next(l lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.lanes[l]
	if len(q.waiting) > 0 {
		q.waiting[0].turn <- true
		q.waiting = slices.Delete(q.waiting, 0, 1)
		return
	}
	if q.sending--; q.sending == 0 {
		delete(b.lanes, l)
	}
}

// leave takes back an order that nobody waits for any more, unless it is under way.
func (b *batches) leave(l lane, o *order) {
	b.mu.Lock()
	if q := b.lanes[l]; q != nil {
		q.waiting = slices.DeleteFunc(q.waiting, func(other *order) bool { return other == o })
	}
	b.mu.Unlock()
	select {
	case first := <-o.turn: // under the lock, so it is there by now
		if first { // it was to send: another one does
			b.next(l)
		}
	default:
	}
}

// batch is what goes in one pipeline; the first order's caller sends it.
type batch []*order

// send fills in what became of the orders. That the caller goes away does not end it, for the others' sake; its
// deadline does.
func (b batch) send(ctx context.Context, l lane) {
	deadline, limited := ctx.Deadline()
	ctx = context.WithoutCancel(ctx)
	if limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	p := l.to.Pipeline()
	for _, o := range b {
		o.cmd = o.queue(ctx, p)
	}
	var waited *redis.Cmd
	if l.wait > 0 {
		waited = p.Do(ctx, "wait", 1, l.wait.Milliseconds())
	}
	_, _ = p.Exec(ctx) // each command has its own error
	if waited == nil {
		return
	}
	if replicas, err := waited.Int(); err == nil && replicas >= 1 {
		for _, o := range b {
			o.confirmed = o.cmd.Err() == nil
		}
	}
}
