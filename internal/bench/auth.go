//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/goshield/goshield/internal/figures"
)

const (
	bareName = "redis-benchmark"
	authName = "auth-service"
)

// tokenKeepers are measured with operations on tokens: the scripts alone, and auth-service with all
// that it does around them.
var tokenKeepers = []contestant{{name: bareName}, {name: authName, ours: authName}}

func authDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		warm:        200 * time.Millisecond,
		window:      1200 * time.Millisecond,
		threads:     []int{2},
		connections: []int{128},
		devices:     []int{1_000, 4 * leastRotated, 100_000, 1_000_000},
		payload:     minPayload,
		field:       tokenKeepers,
		peers:       []string{bareName},
	}
	if quick {
		opt.rounds, opt.window, opt.devices = 1, time.Second, []int{4 * leastRotated}
	}
	return opt
}

// keeping is what a keeper of tokens did in one round.
type keeping struct {
	Verify measurement  `json:"verify"`
	Rotate *measurement `json:"rotate,omitempty"` // nil: too few devices for it
	Memory float64      `json:"memory,omitempty"` // bytes in Redis, a device
}

func (k keeping) rotated(figure func(measurement) float64) float64 {
	if k.Rotate == nil {
		return math.NaN()
	}
	return figure(*k.Rotate)
}

var keepingMetrics = []metric[keeping]{
	{"verify: operations/s", "verify, operations/s", 0, func(k keeping) float64 { return k.Verify.rate() }, goal{ratio: 0.5, moreWins: true}},
	{"verify: p50 ms", "", 2, func(k keeping) float64 { return k.Verify.p50() }, goal{}},
	{"verify: p99 ms", "verify, p99 ms", 2, func(k keeping) float64 { return k.Verify.p99() }, goal{}},
	{"verify: µs CPU", "", 1, func(k keeping) float64 { return k.Verify.cpuEach() }, goal{}},
	{"rotate: operations/s", "rotate, operations/s", 0, func(k keeping) float64 { return k.rotated(measurement.rate) }, goal{ratio: 0.5, moreWins: true}},
	{"rotate: p50 ms", "", 2, func(k keeping) float64 { return k.rotated(measurement.p50) }, goal{}},
	{"rotate: p99 ms", "rotate, p99 ms", 2, func(k keeping) float64 { return k.rotated(measurement.p99) }, goal{}},
	{"rotate: µs CPU", "", 1, func(k keeping) float64 { return k.rotated(measurement.cpuEach) }, goal{}},
	{"bytes in Redis per device", "", 0, func(k keeping) float64 { return orNone(k.Memory) }, goal{most: 550}},
}

// auth measures operations on tokens through auth-service, beside their bare scripts.
func auth(ctx context.Context, r *rig, opt options) (*report, error) {
	if opt.ours() == "" {
		return nil, errors.New("without auth-service there are no scripts to measure: -binaries")
	}
	var settings []*setting[keeping]
	for _, threads := range opt.threads {
		found, err := r.keepTokens(ctx, threads, opt)
		if err != nil {
			return nil, err
		}
		settings = append(settings, found...)
	}
	rep := &report{Versions: firstLine("redis-server", "--version"), Settings: settings}
	rep.say("Operations on one device after the other (redis-benchmark: at random), as many at once as there are connections; medians of %d rounds (lowest–highest) of %s, "+
		"ratios of the rounds / of the medians. redis-benchmark sends the EVALSHA that auth-service itself sends; auth-service is asked over HTTP/1.1, and "+
		"authenticates, audits (to a file) and counts each operation. This Redis is one server without replicas, so neither waits for one. Redis, what is measured and the clients share the cores. CPU is that of Redis and "+
		"auth-service. A record has been rotated eight times. A rotation is of a device that has no next token, which takes many devices. %s.", opt.rounds, opt.window, rep.Versions)
	for _, s := range settings {
		compare(rep, s, opt, keepingMetrics)
	}
	rep.say("%s", flatness(settings, opt))
	return rep, nil
}

// flatness compares what an operation costs for the most devices with what it costs for the fewest.
func flatness(settings []*setting[keeping], opt options) string {
	const most = 1.2
	table := figures.Table{Columns: []string{"µs CPU of an operation", "fewest devices", "most devices", "ratio", "goal"}}
	for _, op := range []struct {
		name string
		cost func(keeping) float64
	}{
		{"verify", func(k keeping) float64 { return k.Verify.cpuEach() }},
		{"rotate", func(k keeping) float64 { return k.rotated(measurement.cpuEach) }},
	} {
		measured := slices.DeleteFunc(slices.Clone(settings), func(s *setting[keeping]) bool { return len(s.of(opt.ours(), op.cost)) == 0 })
		if len(measured) == 0 {
			continue
		}
		few := func(a, b *setting[keeping]) int { return a.Devices - b.Devices }
		from, to := slices.MinFunc(measured, few), slices.MaxFunc(measured, few)
		a, b := from.of(opt.ours(), op.cost).median(), to.of(opt.ours(), op.cost).median()
		cell := func(cost float64, s *setting[keeping]) string { return fmt.Sprintf("%.1f at %d", cost, s.Devices) }
		table.Add(op.name, cell(a, from), cell(b, to), fmt.Sprintf("%.2f", b/a), goal{ratio: most}.text(b/a, 0, 0))
	}
	return table.String()
}

// keepTokens runs all rounds of all settings that have so many threads.
func (r *rig) keepTokens(ctx context.Context, threads int, opt options) ([]*setting[keeping], error) {
	k, err := r.startKeeper(ctx, threads, opt)
	if err != nil {
		return nil, err
	}
	defer k.stop()
	var settings []*setting[keeping]
	for _, devices := range opt.devices {
		memory, err := k.fill(ctx, devices)
		if err != nil {
			return nil, err
		}
		for _, connections := range opt.connections {
			s := &setting[keeping]{Threads: threads, Connections: connections, Devices: devices, Rounds: map[string][]keeping{}}
			settings = append(settings, s)
			for range opt.rounds {
				if err := s.round(ctx, opt, func(ctx context.Context, c contestant, s *setting[keeping]) (keeping, error) {
					found, err := k.once(ctx, c, s, opt)
					if c.ours != "" {
						found.Memory = memory
					}
					if err == nil {
						r.tell("%s: %-15s verify %s, rotate %s", s, c.name, told(&found.Verify), told(found.Rotate))
					}
					return found, err
				}); err != nil {
					return nil, fmt.Errorf("%s, %w", s, err)
				}
			}
		}
	}
	return settings, nil
}

func told(m *measurement) string {
	if m == nil {
		return "–"
	}
	return fmt.Sprintf("%6.0f/s, p99 %s, %.1f µs CPU", m.rate(), m.P99.Round(time.Microsecond), m.cpuEach())
}

// leastRotated is how many rotations a measurement needs. The bare script can rotate a record only once, and is let loose on a
// quarter of the records at most.
const leastRotated = 5_000

// once is a round of one contestant.
func (k *keeper) once(ctx context.Context, c contestant, s *setting[keeping], opt options) (keeping, error) {
	var found keeping
	var err error
	if c.ours != "" {
		if found.Verify, err = k.ask(ctx, s, pathVerify, "", opt); err != nil {
			return found, err
		}
	} else if found.Verify, err = k.bare(ctx, s, k.verify, math.MaxInt, opt); err != nil {
		return found, err
	}
	if s.Devices/4 < leastRotated {
		return found, nil
	}
	if _, err := k.fill(ctx, s.Devices); err != nil {
		return found, err
	}
	var rotate measurement
	if c.ours != "" {
		rotate, err = k.ask(ctx, s, pathRotate, ownerField, opt)
	} else {
		rotate, err = k.bare(ctx, s, k.rotate, s.Devices/4, opt)
	}
	found.Rotate = &rotate
	return found, err
}
