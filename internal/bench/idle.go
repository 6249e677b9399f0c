//go:build linux

package main

import (
	"context"
	"math"
	"time"
)

func idleDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		window:      time.Second, // between two looks at the memory
		threads:     []int{1},
		connections: []int{9000},
		payload:     64,
		field:       relays,
	}
	if quick {
		opt.rounds, opt.connections = 1, []int{2000}
	}
	return opt
}

// idleness is what a contestant's idle connections cost it.
type idleness struct {
	Connections int   `json:"connections"` // fewer than asked for if descriptors do not suffice
	Empty       int64 `json:"empty_bytes"` // before the first
	Full        int64 `json:"full_bytes"`  // when all were idle
	Descriptors int   `json:"descriptors"` // of all connections
}

func (i idleness) kilobytes() float64 {
	return float64(i.Full-i.Empty) / 1024 / float64(i.Connections)
}

func (i idleness) descriptorsEach() float64 { return float64(i.Descriptors) / float64(i.Connections) }

var idleMetrics = []metric[idleness]{
	{"KB per connection", "KB per idle connection", 2, idleness.kilobytes, goal{ratio: 0.15, most: 0.5}},
	{"descriptors per connection", "", 1, idleness.descriptorsEach, goal{}},
	{"connections held", "", 0, func(i idleness) float64 { return float64(i.Connections) }, goal{moreWins: true}},
}

// idle measures the memory of connections on which one message has gone forth
// and back, and then nothing.
func idle(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := interleave(ctx, opt, func(ctx context.Context, c contestant, s *setting[idleness]) (idleness, error) {
		found, err := idleOnce(ctx, r, c, s, opt)
		if err == nil {
			r.tell("%s: %-8s %5d connections, %6.2f KB and %.1f descriptors each", threadsText(s.Threads), c.name,
				found.Connections, found.kilobytes(), found.descriptorsEach())
		}
		return found, err
	})
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("Connections idle after one round trip of %d bytes; medians of %d rounds (lowest–highest). Memory is the proxy's own (PSS), "+
		"without the kernel's for the sockets. %s.", opt.payload, opt.rounds, rep.Versions)
	for _, s := range settings {
		compare(rep, s, opt, idleMetrics)
	}
	return rep, nil
}

func idleOnce(ctx context.Context, r *rig, c contestant, s *setting[idleness], opt options) (idleness, error) {
	limit, err := descriptorLimit()
	if err != nil {
		return idleness{}, err
	}
	found := idleness{Connections: min(s.Connections, (limit-200)/c.descriptors)}
	t, err := r.start(ctx, c, s.Threads, opt)
	if err != nil {
		return idleness{}, err
	}
	defer t.stop()
	pids, err := t.proxy.pids()
	if err != nil {
		return idleness{}, err
	}
	if found.Empty, err = settled(ctx, pids, opt.window); err != nil {
		return idleness{}, err
	}
	before, err := descriptors(pids)
	if err != nil {
		return idleness{}, err
	}
	load, err := t.startLoad(ctx, loadSpec{Connections: found.Connections, Payload: opt.payload})
	if err != nil {
		return idleness{}, err
	}
	defer load.stop()
	if found.Full, err = settled(ctx, pids, opt.window); err != nil {
		return idleness{}, err
	}
	after, err := descriptors(pids)
	found.Descriptors = after - before
	if err == nil {
		err = load.ended()
	}
	return found, err
}

// settled is the memory of processes when it has stopped changing by more than
// half a percent between two looks, or after ten looks.
func settled(ctx context.Context, pids []int, pause time.Duration) (int64, error) {
	again := time.NewTicker(pause)
	defer again.Stop()
	last, err := resident(pids)
	for range 10 {
		if err != nil {
			return 0, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		var now int64
		now, err = resident(pids)
		if math.Abs(float64(now-last)) < float64(last)/200 {
			return now, err
		}
		last = now
	}
	return last, err
}
