//go:build linux

package main

import (
	"context"
	"time"
)

func bulkDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		warm:        300 * time.Millisecond,
		window:      1200 * time.Millisecond,
		threads:     []int{1, 2},
		connections: []int{8},
		payload:     maxPayload,
		field:       bulkRelays,
	}
	if quick {
		opt.rounds, opt.window, opt.threads = 1, time.Second, []int{1}
	}
	return opt
}

var bulkMetrics = []metric[measurement]{
	{"MB/s", "MB/s", 0, measurement.megabytes, goal{ratio: 1.5, moreWins: true}},
	{"ms CPU per GB", "ms CPU per GB", 0, measurement.cpuPerGigabyte, goal{}},
	{"cores it kept busy then", "", 2, measurement.busy, goal{}},
}

// bulk measures streams from the server to the client.
func bulk(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := interleave(ctx, opt, func(ctx context.Context, c contestant, s *setting[measurement]) (measurement, error) {
		m, err := bulkOnce(ctx, r, c, s, opt)
		if err == nil {
			r.tell("%s: %-8s %6.0f MB/s, %5.0f ms CPU per GB", s, c.name, m.megabytes(), m.cpuPerGigabyte())
		}
		return m, err
	})
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("Streams from the server to the client, as fast as they go; medians of %d rounds (lowest–highest) of %s, ratios of the "+
		"rounds / of the medians. HAProxy has `option splice-auto`, nginx buffers of 64 KiB. CPU is the proxy's own. %s.", opt.rounds, opt.window, rep.Versions)
	for _, s := range settings {
		compare(rep, s, opt, bulkMetrics)
	}
	return rep, nil
}

func bulkOnce(ctx context.Context, r *rig, c contestant, s *setting[measurement], opt options) (measurement, error) {
	t, err := r.start(ctx, c, s.Threads, opt)
	if err != nil {
		return measurement{}, err
	}
	defer t.stop()
	pids, err := t.proxy.pids()
	if err != nil {
		return measurement{}, err
	}
	return t.measureOnce(ctx, "drain-role", drainSpec{
		Address: t.address, Connections: s.Connections, Warm: opt.warm, Window: opt.window, PIDs: pids,
	}, opt)
}
