package lease

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/redistest"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

var long = os.Getenv("GOSHIELD_TEST_LONG") != ""

// record is when requests were let through.
type record struct {
	mu sync.Mutex
	at []span
}

// span is from before a limit was asked to after it answered.
type span struct{ asked, answered time.Time }

// take asks a limit.
func (r *record) take(l *Limit) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := time.Now()
	if l.Take() > 0 {
		return false
	}
	r.at = append(r.at, span{asked, time.Now()})
	return true
}

func (r *record) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.at)
}

// check holds row 51 against every window there is: burst + rate·W + gateways × batch, and what else may be. A window is from before
// its first request to after its last: where the machine stood still meanwhile, tokens came.
func (r *record) check(t *testing.T, rule Rule, gateways int, more float64) {
	t.Helper()
	bound := rule.Burst + float64(gateways)*float64(rule.batch()) + more
	lowest, worst := math.Inf(1), 0.0
	for i, at := range r.at {
		due := func(t time.Time) float64 { return t.Sub(r.at[0].asked).Seconds() * rule.Rate }
		lowest = min(lowest, float64(i)-due(at.asked))
		worst = max(worst, float64(i+1)-due(at.answered)-lowest)
	}
	if worst > bound {
		t.Errorf("in some window %.1f more than rate·W were let through, want at most %.1f (burst %v, %d gateways, batch %d)",
			worst, bound, rule.Burst, gateways, rule.batch())
	}
}

var errAway = errors.New("away")

// model is what the script does, in plain Go, and how long Redis takes.
type model struct {
	mu     sync.Mutex
	tokens map[string]float64
	at     map[string]time.Time
	nodes  map[string]struct{}
	away   bool
	delay  time.Duration
	asked  int
	late   map[string][]Ask // by node: what a frozen Redis has got, and carries out when it goes on
}

const (
	// frozen is the delay of a Redis that does not go on by itself.
	frozen = time.Hour
	// open is how many connections a node has when Redis freezes. A question that is given up ends its connection, and on a
	// new one the client says nothing before it is greeted.
	open = 3
)

func newModel() *model {
	return &model{tokens: map[string]float64{}, at: map[string]time.Time{}, nodes: map[string]struct{}{}, late: map[string][]Ask{}}
}

func (m *model) Lease(ctx context.Context, a Ask) (int64, int, error) {
	m.mu.Lock()
	delay := m.delay
	if delay == frozen && len(m.late[a.Node]) < open {
		m.late[a.Node] = append(m.late[a.Node], a)
	}
	m.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return 0, 0, errAway
	}
	leased, nodes := m.carryOut(a)
	return leased, nodes, nil
}

// carryOut is called with mu held.
func (m *model) carryOut(a Ask) (leased int64, nodes int) {
	m.asked++
	m.nodes[a.Node] = struct{}{}
	tokens, known := m.tokens[a.Name]
	if !known {
		tokens = a.Rule.Burst
	} else {
		tokens = min(a.Rule.Burst, tokens+time.Since(m.at[a.Name]).Seconds()*a.Rule.Rate)
	}
	if a.Drain {
		tokens = min(tokens, 0)
	}
	tokens -= float64(a.Owed)
	leased = max(0, min(a.Wanted, int64(math.Floor(tokens))))
	m.tokens[a.Name], m.at[a.Name] = tokens-float64(leased), time.Now()
	return leased, len(m.nodes)
}

// set has Redis be away, or take so long. What it got while it was frozen it carries out first, for nobody.
func (m *model) set(away bool, delay time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away, m.delay = away, delay
	if delay == frozen {
		return
	}
	for node, asks := range m.late {
		for _, a := range asks {
			m.carryOut(a)
		}
		delete(m.late, node)
	}
}

func (m *model) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// fleetOf is the same limit at several gateways.
func fleetOf(m *model, rule Rule, gateways int) (limits []*Limit, end func()) {
	all := make([]*Leases, gateways)
	for i := range all {
		all[i] = New(Config{Node: fmt.Sprint("gw-", i), Source: m})
		all[i].Apply(map[string]Rule{"echo": rule})
		limits = append(limits, all[i].Limit("echo"))
	}
	return limits, func() {
		for _, l := range all {
			l.Close()
		}
	}
}

// Row 51 in a model: random rules, random demand that moves between gateways, a Redis that takes its time. The seed
// tells which case failed.
func TestBoundInAModel(t *testing.T) {
	seeds := uint64(10)
	if long {
		seeds = 1000
	}
	for seed := range seeds {
		for _, outages := range []bool{false, true} {
			t.Run(fmt.Sprintf("seed %d outages %v", seed, outages), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { playBound(t, seed, outages) })
			})
		}
	}
}

func playBound(t *testing.T, seed uint64, outages bool) {
	rng := rand.New(rand.NewPCG(seed, 51))
	gateways := 1 + rng.IntN(5)
	rule := Rule{Rate: math.Exp(rng.Float64() * 7), Burst: math.Ceil(math.Exp(rng.Float64() * 7))}
	m := newModel()
	limits, end := fleetOf(m, rule, gateways)
	defer end()
	r, more := &record{}, 0.0
	time.Sleep(2 * presence) // every node knows of the others: until then shares are too large
	for range 20 {           // phases
		away := outages && rng.IntN(5) == 0
		if away {
			more = rule.Rate * (askTimeout + retryEvery).Seconds() // until each has noticed that Redis is back
		}
		delay := time.Duration(rng.IntN(20)) * time.Millisecond
		if away && rng.IntN(2) == 0 {
			delay = frozen
		}
		m.set(away, delay)
		demand := rule.Rate * math.Exp(rng.Float64()*4-2)
		favourite := rng.IntN(gateways)
		for i := range 200 {
			time.Sleep(time.Duration(rng.ExpFloat64() / demand * float64(time.Second)))
			which := favourite
			if away { // for all of them: who asks for nothing does not notice
				which = i % gateways
			} else if rng.IntN(3) == 0 {
				which = rng.IntN(gateways)
			}
			r.take(limits[which])
		}
	}
	r.check(t, rule, gateways, more)
	if t.Failed() {
		t.Logf("%d gateways, %+v", gateways, rule)
	}
}

// What is under the limit is never refused, from the first request on: a new limit's were, until Redis had answered.
func TestUnderTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		m.set(false, 2*time.Millisecond)
		limits, end := fleetOf(m, Rule{Rate: 1000, Burst: 1000}, 3)
		defer end()
		for i := range 5000 {
			if retry := limits[i%3].Take(); retry > 0 {
				t.Fatalf("request %d at 900 a second was refused for %v", i, retry)
			}
			time.Sleep(time.Second / 900)
		}
	})
}

// What a new limit lets through before Redis has answered is charged.
func TestAdvanceIsCharged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, rule := newModel(), Rule{Rate: 1, Burst: 100}
		take := func() (passed int) {
			limits, end := fleetOf(m, rule, 1)
			defer end()
			for limits[0].Take() == 0 {
				passed++
				synctest.Wait() // it has asked
			}
			return passed
		}
		if passed := take(); passed != 100 {
			t.Errorf("%d were let through at once, want the burst of 100", passed)
		}
		if passed, batch := take(), int(rule.batch()); passed != batch {
			t.Errorf("a gateway that finds the limit used up let %d through, want its advance of %d", passed, batch)
		}
		if tokens := m.tokens["echo"]; tokens != -5 {
			t.Errorf("the bucket stands at %v, want the advance to be owed", tokens)
		}
	})
}

// All of the limit is used when there is demand for it, wherever it arises.
func TestTheWholeLimitIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		m.set(false, 2*time.Millisecond)
		rule := Rule{Rate: 1000, Burst: 100}
		limits, end := fleetOf(m, rule, 3)
		defer end()
		r := &record{}
		for range 3 * 5000 {
			r.take(limits[0])
			time.Sleep(time.Second / 5000)
		}
		r.check(t, rule, 3, 0)
		if n := len(r.at); n < 2850 {
			t.Errorf("%d of 3000 were let through in 3 s, want at least 2850", n)
		}
	})
}

// Rows 36 and 39: without Redis, or with one that takes too long, each gateway goes by its share. A Redis that was frozen carries out
// what it was asked meanwhile, which takes tokens that nobody gets: they have come again in two seconds.
func TestLocalShare(t *testing.T) {
	for name, set := range map[string]func(m *model){
		"away":      func(m *model) { m.set(true, 0) },
		"too slow":  func(m *model) { m.set(false, 500*time.Millisecond) },
		"both ways": func(m *model) { m.set(true, 500*time.Millisecond) },
		"frozen":    func(m *model) { m.set(false, frozen) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel()
				rule := Rule{Rate: 300, Burst: 30}
				limits, end := fleetOf(m, rule, 3)
				defer end()
				time.Sleep(2 * presence) // every node knows of the others
				set(m)
				r := &record{}
				count := func(d time.Duration, who ...*Limit) (n int) {
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
						for _, l := range who {
							if r.take(l) {
								n++
							}
						}
					}
					return n
				}
				count(time.Second, limits...)
				if n := count(10*time.Second, limits[0]); n < 990 || n > 1015 {
					t.Errorf("one of three gateways let %d through in 10 s, want its share of 1000", n)
				}
				m.set(false, 0)
				time.Sleep(2 * time.Second)
				if n := count(10*time.Second, limits[0]); n < 2950 || n > 3060 {
					t.Errorf("with Redis again it let %d through in 10 s, want all of 3000", n)
				}
				r.check(t, rule, 3, rule.Rate*(askTimeout+retryEvery).Seconds())
			})
		})
	}
}

// After an outage the shared bucket begins empty, less what was used since Redis is back: whoever is far below the limit is refused for a
// moment at most.
func TestFarBelowTheLimitAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, rule := newModel(), Rule{Rate: 1000, Burst: 1000}
		limits, end := fleetOf(m, rule, 2)
		defer end()
		time.Sleep(2 * presence)
		refused := 0
		ask := func(d time.Duration) { // a tenth of the limit
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				for _, l := range limits {
					if l.Take() > 0 {
						refused++
					}
				}
			}
		}
		m.set(true, 0)
		ask(10 * time.Second)
		if refused != 0 {
			t.Errorf("%d requests were refused while Redis was away, want none", refused)
		}
		m.set(false, 0)
		ask(10 * time.Second)
		if refused > 10 {
			t.Errorf("%d of 1000 requests were refused when Redis was back, want ten at most", refused)
		}
	})
}

// Redis is asked ahead of requests, in batches, and not at all for nothing but to be counted.
func TestRedisIsAskedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		limits, end := fleetOf(m, Rule{Rate: 1000, Burst: 1000}, 1)
		defer end()
		time.Sleep(100 * time.Millisecond)
		before := m.count()
		for range 1000 {
			limits[0].Take()
			time.Sleep(time.Millisecond)
		}
		if n := m.count() - before; n > 50 {
			t.Errorf("1000 requests asked %d times, want a batch at a time", n)
		}
		before = m.count()
		time.Sleep(time.Minute)
		if n := m.count() - before; n > 7 {
			t.Errorf("a minute without requests asked %d times, want one each %v", n, presence)
		}
	})
}

func TestApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := New(Config{Node: "gw", Source: newModel()})
		defer leases.Close()
		if leases.Limit("echo").Take() != 0 {
			t.Error("without a limit a request was refused")
		}
		leases.Apply(map[string]Rule{"echo": {Rate: 1, Burst: 1}, "other": {Rate: 1, Burst: 1}})
		time.Sleep(50 * time.Millisecond)
		echo := leases.Limit("echo")
		if echo.Take() != 0 || echo.Take() == 0 {
			t.Error("a limit of one did not let exactly one through")
		}
		leases.Apply(map[string]Rule{"echo": {Rate: 1000, Burst: 100}})
		if leases.Limit("echo") != echo || leases.Limit("other") != nil {
			t.Error("a changed limit was made anew, or one without a rule stayed")
		}
		time.Sleep(time.Second)
		for i := range 5 {
			if retry := echo.Take(); retry != 0 {
				t.Errorf("request %d under the new limit was refused for %v", i, retry)
			}
		}
	})
}
