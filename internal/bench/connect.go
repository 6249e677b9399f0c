//go:build linux

package main

import (
	"context"
	"time"
)

func connectDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		warm:        300 * time.Millisecond,
		window:      1200 * time.Millisecond,
		threads:     []int{1, 2},
		connections: []int{64},
		payload:     64,
		field:       relays,
	}
	if quick {
		opt.rounds, opt.window, opt.threads = 1, time.Second, []int{1}
	}
	return opt
}

var connectMetrics = []metric[measurement]{
	{"µs CPU per connection", "µs CPU per connection", 1, measurement.cpuEach, goal{ratio: 0.95}},
	{"connections/s", "connections/s", 0, measurement.rate, goal{moreWins: true}},
	{"cores it kept busy then", "", 2, measurement.busy, goal{}},
	{"p99 ms, from SYN to last FIN", "", 2, measurement.p99, goal{}},
}

// connect measures connections that are opened, make one round trip and are
// closed, by so many clients at the same time.
func connect(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := interleave(ctx, opt, func(ctx context.Context, c contestant, s *setting[measurement]) (measurement, error) {
		m, err := connectOnce(ctx, r, c, s, opt)
		if err == nil {
			r.tell("%s: %-8s %6.1f µs CPU, %6.0f connections/s, p99 %s", s, c.name, m.cpuEach(), m.rate(), m.P99.Round(time.Microsecond))
		}
		return m, err
	})
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("Connections opened, one round trip of %d bytes, closed in good order, so many at the same time; medians of %d rounds "+
		"(lowest–highest) of %s, ratios of the rounds / of the medians. CPU is the proxy's own. %s.", opt.payload, opt.rounds, opt.window, rep.Versions)
	for _, s := range settings {
		compare(rep, s, opt, connectMetrics)
	}
	return rep, nil
}

func connectOnce(ctx context.Context, r *rig, c contestant, s *setting[measurement], opt options) (measurement, error) {
	t, err := r.start(ctx, c, s.Threads, opt)
	if err != nil {
		return measurement{}, err
	}
	defer t.stop()
	pids, err := t.proxy.pids()
	if err != nil {
		return measurement{}, err
	}
	return t.measureOnce(ctx, "visit-role", visitSpec{
		Address: t.address, AtOnce: s.Connections, Payload: opt.payload, Warm: opt.warm, Window: opt.window, PIDs: pids,
	}, opt)
}
