// Package health finds out which of a set of targets can be used.
//
//	m := health.Start(health.TCP("10.0.0.1:8443", false), rule, func(c health.Change) {
//		log.Info("upstream", zap.Stringer("state", c.To), zap.String("reason", c.Reason))
//	})
//	defer m.Stop()
//	if m.Status().State == health.Up { … }
//
// There are two sources of knowledge, for two kinds of fault. A Monitor probes
// one target on its own account (it hears of a fault without traffic, and of
// its end). An Ejector listens to what real connections meet (it hears of faults that a
// probe does not touch, at once). Neither knows about other targets: that
// one never does without all of them at once is a rule of whoever owns the set.
package health

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// State is what a Monitor makes of its target.
type State uint8

// A target is Starting until its first probe succeeds, which makes it Up at
// once, or until Fall probes in a row failed.
const (
	Starting State = iota
	Up
	Down
)

// String is the state in lower case.
func (s State) String() string {
	switch s {
	case Starting:
		return "starting"
	case Up:
		return "up"
	default:
		return "down"
	}
}

// Rule says how a target is probed and judged.
type Rule struct {
	Interval time.Duration // from start to start; ± a tenth, so that many probers do not march in step
	Timeout  time.Duration // of one probe
	Rise     int           // successes in a row that bring a target back
	Fall     int           // failures in a row that take it out
}

// Change is one change of state.
type Change struct {
	From, To State
	Reason   string // for people: the last probe's error, or what succeeded
}

// Status is a Monitor's present judgement.
type Status struct {
	State  State
	Reason string        // of the last change, or why a starting target has not come up yet
	Since  time.Time     // of State
	Took   time.Duration // the last probe's duration; 0 before the first has ended
}

// Monitor probes one target until Stop.
type Monitor struct {
	// Static after construction.
	onChange func(Change)
	cancel   context.CancelFunc
	ended    chan struct{}
	changed  chan struct{} // tells run of a new probe or rule

	// Owned by run.
	everUp bool
	streak int // probes in a row that speak against the present state

	mu     sync.Mutex
	probe  Probe
	rule   Rule
	status Status
}

type result struct {
	err  error
	took time.Duration
}

// Start probes at once and then each interval. onChange (may be nil) hears of
// each change, once and in order, on the Monitor's goroutine: it may block the
// next probe but must not call Stop.
func Start(probe Probe, rule Rule, onChange func(Change)) *Monitor {
	ctx, cancel := context.WithCancel(context.Background())
	m := &Monitor{
		probe: probe, rule: rule, onChange: onChange, cancel: cancel,
		ended: make(chan struct{}), changed: make(chan struct{}, 1),
		status: Status{State: Starting, Reason: "no probe has ended yet", Since: time.Now()},
	}
	go m.run(ctx)
	return m
}

// Stop ends the probing, and waits until it has ended. It may be called again.
func (m *Monitor) Stop() {
	m.cancel()
	<-m.ended
}

// Set changes how the target is probed and judged from now on, and probes at once. The present
// judgement stands until probes speak against it.
func (m *Monitor) Set(probe Probe, rule Rule) {
	m.mu.Lock()
	m.probe, m.rule = probe, rule
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *Monitor) settings() (Probe, Rule) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.probe, m.rule
}

// Status is the present judgement.
func (m *Monitor) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// run ends when ctx does.
func (m *Monitor) run(ctx context.Context) {
	defer close(m.ended)
	for ctx.Err() == nil {
		probe, rule := m.settings()
		next := time.NewTimer(jitter(rule.Interval))
		r := probe.once(ctx, rule.Timeout)
		if ctx.Err() != nil {
			next.Stop()
			return
		}
		m.judge(r)
		select {
		case <-next.C:
		case <-m.changed:
		case <-ctx.Done():
		}
		next.Stop()
	}
}

func (p Probe) once(ctx context.Context, timeout time.Duration) result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	err := p(ctx)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", timeout)
	}
	return result{err: err, took: time.Since(start)}
}

// judge counts a probe's result and reports the change that it brings, if any.
func (m *Monitor) judge(r result) {
	m.mu.Lock()
	from := m.status.State
	m.status.Took = r.took
	if agrees := (r.err == nil) == (from == Up); agrees && from != Starting {
		m.streak = 0
		m.mu.Unlock()
		return
	}
	m.streak++
	to, reason := from, ""
	switch {
	case r.err != nil && m.streak >= m.rule.Fall:
		to, reason = Down, r.err.Error()
	case r.err != nil:
		if from == Starting {
			m.status.Reason = r.err.Error()
		}
	case !m.everUp:
		to, reason = Up, "its first probe succeeded"
	case m.streak >= m.rule.Rise:
		to, reason = Up, fmt.Sprintf("%d probes in a row succeeded", m.streak)
	}
	if to == from {
		m.mu.Unlock()
		return
	}
	m.streak = 0
	m.everUp = m.everUp || to == Up
	m.status.State, m.status.Reason, m.status.Since = to, reason, time.Now()
	m.mu.Unlock()
	if m.onChange != nil {
		m.onChange(Change{From: from, To: to, Reason: reason})
	}
}

// jitter is d, up to a tenth more or less.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
