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
		turns:       6,
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
// the rate that the first contestant, who is HAProxy if it takes part, reached so in the same round.
func relay(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := allRounds(opt, func(s *setting[relaying]) error { return relayRound(ctx, r, s, opt) })
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("Messages of %d bytes, back and forth; medians of %d rounds (lowest–highest) of %s, ratios of the rounds / of the medians. "+
		"At saturation, in %d turns, one is under way on each connection. CPU is the proxy's own. %s.",
		opt.payload, opt.rounds, opt.window, opt.turns, rep.Versions)
	for _, s := range settings {
		compare(rep, s, opt, relayMetrics)
	}
	return rep, nil
}

func relayRound(ctx context.Context, r *rig, s *setting[relaying], opt options) error {
	bouts, err := r.meet(ctx, s.Threads, opt, func(t *trial) (*peer, error) {
		return t.startLoad(ctx, loadSpec{Connections: s.Connections, Payload: opt.payload})
	})
	defer stopAll(bouts)
	if err != nil {
		return err
	}
	request := func(spec measureSpec) any { return spec }
	closed, err := takeTurns(ctx, bouts, opt.turns, 0, opt, request)
	if err != nil {
		return err
	}
	rate := closed[0].rate() / 2
	open, err := takeTurns(ctx, bouts, 1, rate, opt, request)
	if err != nil {
		return err
	}
	for i, b := range bouts {
		r.tell("%s: %-8s %5.1f µs CPU, %6.0f round trips/s; at %6.0f/s p99 %s", s, b.name,
			closed[i].cpuEach(), closed[i].rate(), rate, open[i].P99.Round(time.Microsecond))
		s.add(b.name, relaying{closed[i], rate, open[i]})
	}
	return nil
}
