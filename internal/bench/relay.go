//go:build linux

package main

import (
	"context"
	"time"
)

func relayDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		warm:        300 * time.Millisecond,
		window:      1200 * time.Millisecond,
		threads:     []int{1, 2},
		connections: []int{64, 1000},
		payload:     64,
		field:       relays,
	}
	if quick {
		opt.rounds, opt.window, opt.threads = 1, time.Second, []int{1}
	}
	return opt
}

// relaying is what a relay did in one round.
type relaying struct {
	Closed measurement `json:"closed"` // at saturation
	Rate   float64     `json:"rate"`   // messages a second …
	Open   measurement `json:"open"`   // … at which this was measured
}

var relayMetrics = []metric[relaying]{
	{"µs CPU per round trip", "µs CPU per round trip", 2, func(r relaying) float64 { return r.Closed.cpuEach() }, goal{ratio: 0.90}},
	{"round trips/s at saturation", "round trips/s at saturation", 0, func(r relaying) float64 { return r.Closed.rate() }, goal{ratio: 1.10, moreWins: true}},
	{"cores it kept busy then", "", 2, func(r relaying) float64 { return r.Closed.busy() }, goal{}},
	{"p99 ms at half of the first one's rate", "p99 ms at half of HAProxy's peak", 2, func(r relaying) float64 { return r.Open.p99() }, goal{ratio: 1.00}},
	{"p50 ms", "", 2, func(r relaying) float64 { return r.Open.p50() }, goal{}},
}

// relay measures small messages going back and forth: at saturation, where each
// connection sends one, waits for its echo, and sends the next; and at half of
// the rate that the first contestant reached so in the same round.
func relay(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := interleave(ctx, opt, func(ctx context.Context, c contestant, s *setting[relaying], first *relaying) (relaying, error) {
		found, err := relayOnce(ctx, r, c, s, first, opt)
		if err == nil {
			r.tell("%s: %-8s %5.1f µs CPU, %6.0f round trips/s; at %6.0f/s p99 %s", s, c.name,
				found.Closed.cpuEach(), found.Closed.rate(), found.Rate, found.Open.P99.Round(time.Microsecond))
		}
		return found, err
	})
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("Messages of %d bytes, back and forth; medians of %d rounds (lowest–highest) of %s, ratios of each round. "+
		"At saturation, one is under way on each connection. CPU is the proxy's own. %s.", opt.payload, opt.rounds, opt.window, rep.Versions)
	for _, s := range settings {
		compare(rep, s, opt, relayMetrics)
	}
	return rep, nil
}

func relayOnce(ctx context.Context, r *rig, c contestant, s *setting[relaying], first *relaying, opt options) (relaying, error) {
	var found relaying
	t, err := r.start(ctx, c, s.Threads, opt)
	if err != nil {
		return found, err
	}
	defer t.stop()
	load, err := t.startLoad(ctx, loadSpec{Connections: s.Connections, Payload: opt.payload})
	if err != nil {
		return found, err
	}
	defer load.stop()
	pids, err := t.proxy.pids()
	if err != nil {
		return found, err
	}
	spec := measureSpec{Warm: opt.warm, Window: opt.window, PIDs: pids}
	if found.Closed, err = t.measure(ctx, load, spec, opt); err != nil {
		return found, err
	}
	found.Rate = found.Closed.rate() / 2
	if first != nil {
		found.Rate = first.Rate
	}
	spec.Rate = found.Rate
	found.Open, err = t.measure(ctx, load, spec, opt)
	return found, err
}
