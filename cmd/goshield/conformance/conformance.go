// Package conformance holds a gateway against the rules of docs/PROTOCOL.md §1: all that a device
// can see, over TLS (or plain TCP) and WebSocket, in both versions.
//
//	report, err := conformance.Run(ctx, conformance.Config{Addr: "127.0.0.1:8443", TLS: tlsConfig})
//	if err != nil {
//		return err // the configuration cannot be used
//	}
//	report.WriteText(os.Stdout)
//	return report.Err() // rules that were broken
//
// The rules are data: rules.go and the files beside it have one entry for each. A rule plays a device of
// its own, so rules run side by side. What a gateway's configuration does not let a rule see, such as a
// silence that is longer than Config.Patience, is reported as not tried, with the reason; it is never taken as kept.
package conformance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Defaults of Config.
const (
	DefaultService     = "echo"
	DefaultPushService = "push"
	DefaultPatience    = 30 * time.Second
	DefaultAnswerTime  = 15 * time.Second
	DefaultConcurrency = 16
)

// Config says which gateway is tried, and what the kit may know of it. Addr, WebSocket or both are
// required.
type Config struct {
	Addr      string      // host:port for devices; "": not tried
	WebSocket string      // host:port for devices by WebSocket; "": not tried
	TLS       *tls.Config // nil: plain TCP, and ws in place of wss
	Versions  []byte      // of the protocol; none: all
	Rules     []string    // only those whose names begin so; none: all

	// FirstMAC is the address of the first device, the others count up from it: DevicesNeeded says how many
	// have to be registered where enrolment is allowlist. 0: random, locally administered ones.
	FirstMAC uint64
	// DeviceKey gives a device's key, where enrolment asks for one; may be nil.
	DeviceKey func(wire.ClientID) *[32]byte
	// NoChannelBinding is for listeners that say channel_binding: none. WebSocket never binds.
	NoChannelBinding bool

	Service     string // answers each request with its own body; "": DefaultService
	PushService string // pushes the member "body" of a request, as echo-backend's "push"; "-": there is none
	// Shed makes the gateways send their devices away with GOAWAY; nil: what that asks of them is
	// not tried.
	Shed func(ctx context.Context) error

	// Patience is how long a rule may wait for the gateway to notice a silence.
	Patience time.Duration
	// AnswerTime is how long the gateway may take for what it does at once.
	AnswerTime  time.Duration
	Concurrency int // rules at once, beside those that wait for a silence

	// Progress, if not nil, is called after each rule, from one goroutine at a time.
	Progress func(done, all int)
}

func (cfg *Config) complete() error {
	for _, a := range []struct{ name, addr string }{{"address", cfg.Addr}, {"WebSocket address", cfg.WebSocket}} {
		if a.addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	if cfg.Addr == "" && cfg.WebSocket == "" {
		return errors.New("no address to try")
	}
	if len(cfg.Versions) == 0 {
		cfg.Versions = []byte{wire.Version1, wire.Version2}
	}
	for _, v := range cfg.Versions {
		if v != wire.Version1 && v != wire.Version2 {
			return fmt.Errorf("protocol version %d is not supported", v)
		}
	}
	if cfg.FirstMAC == 0 {
		cfg.FirstMAC = 0x02<<40 | rand.Uint64N(1<<40-devicesPerRule*1000)
	}
	if last := cfg.FirstMAC + uint64(DevicesNeeded()); last >= 1<<48 {
		return fmt.Errorf("first MAC address %012x: the last of %d would be none", cfg.FirstMAC, DevicesNeeded())
	}
	if cfg.Service == "" {
		cfg.Service = DefaultService
	}
	switch cfg.PushService {
	case "":
		cfg.PushService = DefaultPushService
	case "-":
		cfg.PushService = ""
	}
	if cfg.Patience <= 0 {
		cfg.Patience = DefaultPatience
	}
	if cfg.AnswerTime <= 0 {
		cfg.AnswerTime = DefaultAnswerTime
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = DefaultConcurrency
	}
	return nil
}

// devicesPerRule is how many devices one rule may play: itself, and another.
const devicesPerRule = 2

// DevicesNeeded is how many devices a run plays at most.
func DevicesNeeded() int { return len(rules()) * devicesPerRule * 4 }

// way is how devices reach the gateway, and what they speak.
type way struct {
	websocket bool
	version   byte
}

func (w way) String() string {
	if w.websocket {
		return fmt.Sprintf("version %d, WebSocket", w.version)
	}
	return fmt.Sprintf("version %d, TCP", w.version)
}

// job is one rule, tried one way.
type job struct {
	rule *rule
	way  way
	mac  uint64
	out  *Outcome
}

// Run tries every rule. The error says that the configuration cannot be used; what the gateway does wrong
// is in the report. When ctx ends, what is left is not tried.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	all := rules()
	var ways []way
	for _, websocket := range []bool{false, true} {
		if websocket && cfg.WebSocket == "" || !websocket && cfg.Addr == "" {
			continue
		}
		for _, v := range cfg.Versions {
			ways = append(ways, way{websocket, v})
		}
	}
	report := &Report{}
	var jobs []job
	mac := cfg.FirstMAC
	for _, w := range ways {
		for i := range all {
			if r := &all[i]; r.applies(w) && cfg.wants(r.name) {
				jobs = append(jobs, job{rule: r, way: w, mac: mac, out: &Outcome{Way: w.String(), Rule: r.name, Demand: r.demand}})
				report.Outcomes = append(report.Outcomes, jobs[len(jobs)-1].out)
			}
			mac += devicesPerRule
		}
	}
	if len(jobs) == 0 {
		return nil, fmt.Errorf("no rule's name begins with %q", strings.Join(cfg.Rules, `" or "`))
	}
	s := &suite{cfg: cfg, all: len(jobs), slots: make(chan struct{}, cfg.Concurrency)}
	s.runAll(ctx, jobs)
	for i := range all {
		if all[i].disturbs {
			s.runTogether(ctx, jobs, &all[i])
		}
	}
	return report, nil
}

func (cfg *Config) wants(name string) bool {
	return len(cfg.Rules) == 0 || slices.ContainsFunc(cfg.Rules, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// suite runs jobs.
type suite struct {
	cfg     Config
	all     int
	running sync.WaitGroup
	slots   chan struct{}

	mu   sync.Mutex
	done int
}

// runAll plays the jobs whose rules disturb nobody, and returns when all were played. Those that wait for a silence
// wait at the same time.
func (s *suite) runAll(ctx context.Context, jobs []job) {
	for _, j := range jobs {
		if j.rule.slow && !j.rule.disturbs {
			s.running.Go(func() { s.try(ctx, j, nil) })
		}
	}
	for _, j := range jobs {
		if j.rule.slow || j.rule.disturbs {
			continue
		}
		s.slots <- struct{}{} // given back by try, which ends
		s.running.Go(func() {
			defer func() { <-s.slots }()
			s.try(ctx, j, nil)
		})
	}
	s.running.Wait()
}

// runTogether plays a rule that has devices sent away, every way at once, and returns when it was played: their
// devices are sent away together.
func (s *suite) runTogether(ctx context.Context, jobs []job, r *rule) {
	jobs = slices.DeleteFunc(slices.Clone(jobs), func(j job) bool { return j.rule != r })
	g := &gathering{shed: s.cfg.Shed, want: len(jobs), called: make(chan struct{})}
	for _, j := range jobs {
		s.running.Go(func() {
			arrive := sync.OnceFunc(func() { g.arrive(ctx) })
			defer arrive() // who does not come so far must not be waited for
			if s.cfg.Shed == nil {
				s.try(ctx, j, nil)
				return
			}
			s.try(ctx, j, func(context.Context) error {
				arrive()
				<-g.called // each of the others arrives, or ends within its deadlines
				return g.err
			})
		})
	}
	s.running.Wait()
}

// gathering calls shed once, when all who take part have arrived.
type gathering struct {
	shed   func(ctx context.Context) error
	called chan struct{} // closed after it
	err    error         // of it

	mu         sync.Mutex
	want, here int
}

func (g *gathering) arrive(ctx context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.here++
	if g.here == g.want {
		if g.shed != nil {
			g.err = g.shed(ctx)
		}
		close(g.called)
	}
}

// attempts is how often a rule is played that the gateway does not let play out: it sends the device away, or
// cannot serve it just then.
const attempts = 5

// try plays one rule.
func (s *suite) try(ctx context.Context, j job, shed func(context.Context) error) {
	cfg := s.cfg
	cfg.Shed = shed
	start := time.Now()
	var err error
	for range attempts {
		d := newDevice(ctx, &cfg, j.way, j.mac)
		if err = ctx.Err(); err == nil {
			err = j.rule.play(d)
		}
		d.close()
		j.out.Seen = d.seen()
		var again *playAgain
		if !errors.As(err, &again) || j.rule.disturbs && again.wait == 0 {
			break
		}
		if !pause(ctx, again.wait) {
			break
		}
	}
	j.out.Took = time.Since(start)
	var untried *notTried
	var again *playAgain
	switch {
	case err == nil:
		j.out.Result = Kept
	case errors.As(err, &untried):
		j.out.Result, j.out.Seen = NotTried, untried.reason
	case errors.As(err, &again):
		j.out.Result, j.out.Seen = NotTried, again.Error()
	case ctx.Err() != nil:
		j.out.Result, j.out.Seen = NotTried, "interrupted"
	default:
		j.out.Result = Broken
		if j.out.Seen != "" {
			j.out.Seen += "; "
		}
		j.out.Seen += err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done++
	if s.cfg.Progress != nil {
		s.cfg.Progress(s.done, s.all)
	}
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// notTried says why a rule could not be tried.
type notTried struct{ reason string }

func (e *notTried) Error() string { return "not tried: " + e.reason }

func cannotTry(format string, args ...any) error { return &notTried{fmt.Sprintf(format, args...)} }
