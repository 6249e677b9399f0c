//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

func gatewayDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		warm:        300 * time.Millisecond,
		window:      1200 * time.Millisecond,
		threads:     []int{1},
		connections: []int{64},
		payload:     64,
		field:       slices.Concat(terminators, gatewayVariants),
	}
	if quick {
		opt.rounds, opt.window = 1, time.Second
	}
	return opt
}

// serving is what a terminator did in one round.
type serving struct {
	relaying
	Allocations float64 `json:"allocations,omitempty"` // a request, of the gateway
}

var gatewayMetrics = []metric[serving]{
	{"µs CPU per request", "µs CPU per request", 2, func(s serving) float64 { return s.Closed.cpuEach() }, goal{ratio: 0.75}},
	{"requests/s at saturation", "requests/s at saturation", 0, func(s serving) float64 { return s.Closed.rate() }, goal{ratio: 1.5, moreWins: true}},
	{"cores it kept busy then", "", 2, func(s serving) float64 { return s.Closed.busy() }, goal{}},
	{"p99 ms at half of the first one's rate", "p99 ms at half of HAProxy's peak", 2, func(s serving) float64 { return s.Open.p99() }, goal{ratio: 1.00}},
	{"p50 ms", "", 2, func(s serving) float64 { return s.Open.p50() }, goal{}},
	{"allocations per request", "", 1, func(s serving) float64 { return orNone(s.Allocations) }, goal{most: 4}},
}

// variantMetrics are those of which the gateway's variants are compared with it; the goal is version 2's.
var variantMetrics = []metric[serving]{
	{"µs CPU per request", "µs CPU per request", 2, func(s serving) float64 { return s.Closed.cpuEach() }, goal{ratio: 1}},
	{"requests/s at saturation", "", 0, func(s serving) float64 { return s.Closed.rate() }, goal{}},
	{"allocations per request", "", 1, func(s serving) float64 { return orNone(s.Allocations) }, goal{}},
}

// isVariant: of the gateway.
func isVariant(c contestant) bool { return c.ours != "" && c.name != gatewayName }

// orNone is a figure that only some contestants have: zero is none.
func orNone(figure float64) float64 {
	if figure == 0 {
		return math.NaN()
	}
	return figure
}

// gateway measures requests through the gateway, with all that it does for them,
// beside programs that merely end TLS in front of an echo server.
func gateway(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := interleave(ctx, opt, func(ctx context.Context, c contestant, s *setting[serving], first *serving) (serving, error) {
		found, err := gatewayOnce(ctx, r, c, s, first, opt)
		if err == nil && !isVariant(c) {
			r.tell("%s: %-8s %5.1f µs CPU, %6.0f requests/s; at %6.0f/s p99 %s", s, c.name,
				found.Closed.cpuEach(), found.Closed.rate(), found.Rate, found.Open.P99.Round(time.Microsecond))
		} else if err == nil {
			r.tell("%s: %-12s %5.1f µs CPU, %6.0f requests/s", s, c.name, found.Closed.cpuEach(), found.Closed.rate())
		}
		return found, err
	})
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("Messages of %d bytes over TLS 1.3 (%s); medians of %d rounds (lowest–highest) of %s, ratios of each round. For haproxy and "+
		"nginx they go to an echo server and back. For the gateway they are requests of enrolled devices, version 1: the token is checked, "+
		"the device's rate limited, the request routed to echo-backend over one of %d links. At saturation, one is under way on each "+
		"connection. CPU is the proxy's own. %s.", opt.payload, cipherSuite, opt.rounds, opt.window, gatewayLinks, rep.Versions)
	besides, variants := opt, opt
	besides.field = slices.DeleteFunc(slices.Clone(opt.field), isVariant)
	variants.field = slices.DeleteFunc(slices.Clone(opt.field), func(c contestant) bool { return c.ours == "" })
	for _, s := range settings {
		if len(besides.field) > 0 {
			compare(rep, s, besides, gatewayMetrics)
		}
	}
	if len(variants.field) > 1 {
		rep.say("The gateway alone: with devices of version 2, and with backends that are reached by HTTP/1.1 and by gRPC in place of links. " +
			"At saturation as above; nothing else differs.")
		for _, s := range settings {
			compareVariants(rep, s, variants.field, variantMetrics)
		}
	}
	return rep, nil
}

func gatewayOnce(ctx context.Context, r *rig, c contestant, s *setting[serving], first *serving, opt options) (serving, error) {
	var found serving
	t, err := r.start(ctx, c, s.Threads, opt)
	if err != nil {
		return found, err
	}
	defer t.stop()
	crowd, err := t.startCrowd(ctx, crowdSpec{Connections: s.Connections, Payload: opt.payload})
	if err != nil {
		return found, err
	}
	defer crowd.stop()
	pids, err := t.proxy.pids()
	if err != nil {
		return found, err
	}
	before, err := t.counters(ctx, c, mallocs, requests)
	if err != nil {
		return found, err
	}
	spec := measureSpec{Warm: opt.warm, Window: opt.window, PIDs: pids}
	if found.Closed, err = t.measure(ctx, crowd, crowdRequest{Measure: &spec}, opt); err != nil {
		return found, err
	}
	after, err := t.counters(ctx, c, mallocs, requests)
	if err != nil {
		return found, err
	}
	if done := after[1] - before[1]; done > 0 {
		found.Allocations = (after[0] - before[0]) / done
	}
	if isVariant(c) {
		return found, nil // what they are compared by is known
	}
	found.Rate = found.Closed.rate() / 2
	if first != nil {
		found.Rate = first.Rate
	}
	spec.Rate = found.Rate
	found.Open, err = t.measure(ctx, crowd, crowdRequest{Measure: &spec}, opt)
	return found, err
}

// startCrowd has clients connect over TLS. The caller stops the crowd.
func (t *trial) startCrowd(ctx context.Context, spec crowdSpec) (*peer, error) {
	p, err := startRole("clients", nil, t.others, "crowd-role")
	if err != nil {
		return nil, err
	}
	if err := t.join(ctx, p, spec); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// join has more clients connect.
func (t *trial) join(ctx context.Context, crowd *peer, spec crowdSpec) error {
	spec.Address, spec.Version = t.address, t.version
	var answer loadAnswer
	err := crowd.ask(ctx, 5*time.Minute, crowdRequest{Open: &spec}, &answer)
	if err == nil && answer.Fault != "" {
		err = fmt.Errorf("%s", answer.Fault)
	}
	if err != nil {
		return fmt.Errorf("open connections: %w", t.explain(err))
	}
	return nil
}

// Counters of the gateway's metrics page.
const (
	mallocs  = "go_memstats_mallocs_total"
	requests = "goshield_gateway_requests_total"
	links    = "goshield_backend_links"
)

// counters reads metrics of ours, each summed over its labels; zeros for other
// contestants.
func (t *trial) counters(ctx context.Context, c contestant, names ...string) ([]float64, error) {
	found := make([]float64, len(names))
	if c.ours == "" {
		return found, nil
	}
	page, err := get(ctx, "http://"+t.admin+"/metrics")
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		found[i] = sumOf(page, name)
	}
	return found, nil
}
