// Package lease enforces limits that all gateways share. Tokens of a limit are leased from Redis in small batches ahead
// of the requests that use them, so that Redis is on no request's path.
//
//	leases := lease.New(lease.Config{Node: "gw-1", Source: lease.Redis(client), …})
//	leases.Apply(map[string]lease.Rule{"echo": {Rate: 10000, Burst: 20000}})
//	if retry := leases.Limit("echo").Take(); retry > 0 {
//		// over the limit; ask again after retry
//	}
//	...
//	leases.Close()
//
// Over any window W, all gateways together let through at most burst + rate·W + gateways × batch: what they held at its
// beginning, and what Redis leased since. A batch is a twentieth of a second's rate, or of the burst if that is more. A new limit
// begins with a batch in advance, which its first lease is charged with: what comes before Redis has answered is not refused.
//
// While Redis does not answer, a gateway goes by its share: the rate divided by the gateways that leased before, and a batch
// at once. It begins with nothing saved up; what it used is charged when Redis answers again, and after more than a second
// the shared bucket begins empty instead, less what was used since Redis was last asked in vain. So an outage for all adds to the bound only what passes until each has noticed its
// end, a third of a second's rate; a gateway that is cut off alone adds its share.
package lease

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/internal/bucket"
)

const (
	// askTimeout is after which a gateway goes by its share.
	askTimeout = 100 * time.Millisecond
	// retryEvery is how often Redis is asked while it does not answer.
	retryEvery = 250 * time.Millisecond
	// presence is how often a gateway asks that needs nothing, to be counted; lapse is when it counts no more.
	presence = 10 * time.Second
	lapse    = 3 * presence
	// settleAfter is the longest time without Redis whose use is charged token by token.
	settleAfter = time.Second
	// Between two questions of one gateway, while the limit is exhausted.
	minPause, maxPause = 10 * time.Millisecond, 100 * time.Millisecond
)

// Rule is a limit: Rate tokens a second, above 0, and Burst at once, at least 1.
type Rule struct{ Rate, Burst float64 }

// batch is how many tokens a gateway holds at most.
func (r Rule) batch() int64 { return int64(math.Ceil(max(r.Rate, r.Burst) / 20)) }

// pause is how long it takes half a batch to come.
func (r Rule) pause() time.Duration {
	return min(max(time.Duration(float64(r.batch())/2/r.Rate*float64(time.Second)), minPause), maxPause)
}

// Ask is a question to the Source.
type Ask struct {
	Name   string
	Node   string
	Rule   Rule
	Wanted int64
	Owed   int64 // tokens used without a lease since the last answer
	Drain  bool  // the bucket begins empty: nobody knows what was used meanwhile
}

// Source is where tokens are leased. It answers how many, and how many nodes lease this limit.
type Source interface {
	Lease(ctx context.Context, a Ask) (leased int64, nodes int, err error)
}

// Config is what Leases need.
type Config struct {
	Node   string
	Source Source
}

// Leases are the limits of one gateway. They are safe for concurrent use.
type Leases struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	limits map[string]*Limit
}

// New makes leases without limits; Close ends them.
func New(cfg Config) *Leases {
	l := &Leases{cfg: cfg, limits: map[string]*Limit{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Apply puts limits in force: new ones, changed ones; those without a rule end. What a limit holds, it keeps.
func (l *Leases) Apply(rules map[string]Rule) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return
	}
	for name, limit := range l.limits {
		if _, stays := rules[name]; !stays {
			limit.cancel()
			delete(l.limits, name)
		}
	}
	for name, rule := range rules {
		if limit := l.limits[name]; limit != nil {
			limit.setRule(rule)
			continue
		}
		limit := newLimit(l.cfg, name, rule)
		ctx, cancel := context.WithCancel(l.ctx)
		limit.cancel = cancel
		l.limits[name] = limit
		l.work.Go(func() { limit.refill(ctx) })
	}
}

// Limit is the limit of that name; nil, which limits nothing, if there is none.
func (l *Leases) Limit(name string) *Limit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limits[name]
}

// Close ends every limit and waits for what was asked. Leased tokens are lost.
func (l *Leases) Close() {
	l.mu.Lock()
	l.cancel()
	l.mu.Unlock()
	l.work.Wait()
}

// Limit is one limit as one gateway has it. Its methods are safe for concurrent use.
type Limit struct {
	cfg    Config // static
	name   string
	born   time.Time
	cancel context.CancelFunc
	wake   chan struct{} // holds a value when more tokens are needed

	rule atomic.Pointer[Rule]
	held atomic.Int64 // leased and not used

	mu     sync.Mutex
	share  bucket.Limit  // of this gateway, while Redis does not answer; unlimited: it does
	local  bucket.Bucket // state of share
	used   int64         // tokens taken from share or in advance
	nextAt time.Time     // when Redis is asked again
}

func newLimit(cfg Config, name string, rule Rule) *Limit {
	l := &Limit{cfg: cfg, name: name, born: time.Now(), wake: make(chan struct{}, 1)}
	l.rule.Store(&rule)
	advance := min(rule.batch(), int64(rule.Burst))
	l.held.Store(advance)
	l.used = advance
	return l
}

// setRule changes the limit. What is held beyond the new batch is used up first.
func (l *Limit) setRule(rule Rule) {
	if *l.rule.Load() != rule {
		l.rule.Store(&rule)
		l.more()
	}
}

// more has Redis asked.
func (l *Limit) more() {
	select {
	case l.wake <- struct{}{}:
	default: // it will be
	}
}

// Take takes a token. If there is none it says when to ask again, which is more than 0. It never waits.
func (l *Limit) Take() (retry time.Duration) {
	if l == nil {
		return 0
	}
	for {
		held := l.held.Load()
		if held <= 0 {
			return l.takeShare()
		}
		if l.held.CompareAndSwap(held, held-1) {
			if held-1 <= l.rule.Load().batch()/2 {
				l.more()
			}
			return 0
		}
	}
}

// takeShare takes a token while none is held.
func (l *Limit) takeShare() (retry time.Duration) {
	l.more()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.share.Unlimited() {
		return max(time.Until(l.nextAt), time.Millisecond)
	}
	ok, retry := l.share.Take(&l.local, int64(time.Since(l.born)), 1)
	if ok {
		l.used++
		return 0
	}
	return max(retry, time.Millisecond)
}

// refill keeps tokens at hand. It ends when ctx does.
func (l *Limit) refill(ctx context.Context) {
	nodes := 1
	var outage time.Time // since when Redis does not answer; zero: it does
	var away int64       // what was owed when Redis was last asked in vain: used while it was away
	for ctx.Err() == nil {
		rule, asked := *l.rule.Load(), time.Now()
		owed := l.owed()
		ask := Ask{Name: l.name, Node: l.cfg.Node, Rule: rule, Wanted: max(rule.batch()-l.held.Load(), 0), Owed: owed}
		if !outage.IsZero() && asked.Sub(outage) > settleAfter {
			ask.Drain, ask.Owed = true, owed-away
		}
		leased, n, err := l.ask(ctx, ask)
		switch {
		case err != nil:
			if outage.IsZero() {
				outage = asked
			}
			away = owed
			l.goLocal(rule, nodes)
			l.rest(ctx, retryEvery)
		case leased < ask.Wanted:
			nodes, outage = max(n, 1), time.Time{}
			l.goShared(leased, owed)
			l.rest(ctx, rule.pause())
		default:
			nodes, outage = max(n, 1), time.Time{}
			l.goShared(leased, owed)
			l.idle(ctx)
		}
	}
}

func (l *Limit) ask(ctx context.Context, a Ask) (leased int64, nodes int, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return l.cfg.Source.Lease(ctx, a)
}

// owed is what was taken from the share and not charged yet.
func (l *Limit) owed() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}

// goLocal goes by this gateway's share of the rule, with nothing saved up at first.
func (l *Limit) goLocal(rule Rule, nodes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	starts := l.share.Unlimited()
	l.share = bucket.NewLimit(rule.Rate/float64(nodes), float64(rule.batch()))
	if starts {
		l.local = bucket.Bucket{}
		l.share.Charge(&l.local, int64(time.Since(l.born)), float64(rule.batch()))
	}
}

// goShared goes by what Redis leased. charged is what it was told of the share's use, or had no need to know.
func (l *Limit) goShared(leased, charged int64) {
	l.mu.Lock()
	l.share = bucket.Limit{}
	l.used -= charged
	l.nextAt = time.Time{}
	l.mu.Unlock()
	l.held.Add(leased)
}

// rest waits until Redis is to be asked again, whether tokens are needed or not.
func (l *Limit) rest(ctx context.Context, d time.Duration) {
	l.mu.Lock()
	l.nextAt = time.Now().Add(d)
	l.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// idle waits until tokens are needed, or this node is to be counted.
func (l *Limit) idle(ctx context.Context) {
	t := time.NewTimer(presence)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-l.wake:
	case <-t.C:
	}
}
