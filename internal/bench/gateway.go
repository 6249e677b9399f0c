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
		turns:       6,
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
	settings, err := allRounds(opt, func(s *setting[serving]) error { return gatewayRound(ctx, r, s, opt) })
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("Messages of %d bytes over TLS 1.3 (%s); medians of %d rounds (lowest–highest) of %s, ratios of the rounds / of the medians. For haproxy and "+
		"nginx they go to an echo server and back. For the gateway they are requests of enrolled devices, version 1: the token is checked, "+
		"the device's rate limited, and that of the service over all gateways, by tokens leased from Redis; the request is routed to "+
		"echo-backend over one of %d links. At saturation, in %d turns, one is under way on each "+
		"connection. CPU is the proxy's own. %s.",
		opt.payload, cipherSuite, opt.rounds, opt.window, gatewayLinks, opt.turns, rep.Versions)
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

func gatewayRound(ctx context.Context, r *rig, s *setting[serving], opt options) error {
	bouts, err := r.meet(ctx, s.Threads, opt, func(t *trial) (*peer, error) {
		return t.startCrowd(ctx, crowdSpec{Connections: s.Connections, Payload: opt.payload})
	})
	defer stopAll(bouts)
	if err != nil {
		return err
	}
	request := func(spec measureSpec) any { return crowdRequest{Measure: &spec} }
	before, err := countAll(ctx, bouts)
	if err != nil {
		return err
	}
	closed, err := takeTurns(ctx, bouts, opt.turns, 0, opt, request)
	if err != nil {
		return err
	}
	after, err := countAll(ctx, bouts)
	if err != nil {
		return err
	}
	// What variants are compared by is known now. The first of the others is HAProxy, if it takes part.
	others := slices.DeleteFunc(slices.Clone(bouts), func(b *bout) bool { return isVariant(b.who) })
	rate := closed[0].rate() / 2
	open, err := takeTurns(ctx, others, 1, rate, opt, request)
	if err != nil {
		return err
	}
	for i, b := range bouts {
		found := serving{relaying: relaying{Closed: closed[i]}}
		if err := found.account(b, before[i], after[i]); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if j := slices.Index(others, b); j >= 0 {
			found.Rate, found.Open = rate, open[j]
			r.tell("%s: %-12s %5.1f µs CPU, %6.0f requests/s; at %6.0f/s p99 %s", s, b.name,
				found.Closed.cpuEach(), found.Closed.rate(), rate, found.Open.P99.Round(time.Microsecond))
		} else {
			r.tell("%s: %-12s %5.1f µs CPU, %6.0f requests/s", s, b.name, found.Closed.cpuEach(), found.Closed.rate())
		}
		s.add(b.name, found)
	}
	return nil
}

// countAll reads the counters of each gateway.
func countAll(ctx context.Context, bouts []*bout) ([][]float64, error) {
	var all [][]float64
	for _, b := range bouts {
		found, err := b.counters(ctx, b.who, mallocs, requests, limited)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
		all = append(all, found)
	}
	return all, nil
}

// account adds what a gateway's counters say, from before the first of its requests at saturation to after the last.
func (s *serving) account(b *bout, before, after []float64) error {
	if b.who.ours == "" {
		return nil
	}
	if got := after[2] - before[2]; got < float64(s.Closed.Done) {
		return fmt.Errorf("the service's limit let %.0f requests through, of %d or more", got, s.Closed.Done)
	}
	if done := after[1] - before[1]; done > 0 {
		s.Allocations = (after[0] - before[0]) / done
	}
	return nil
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
	if err := crowd.do(ctx, 5*time.Minute, crowdRequest{Open: &spec}); err != nil {
		return fmt.Errorf("open connections: %w", t.explain(err))
	}
	return nil
}

// Counters of the gateway's metrics page.
const (
	mallocs  = "go_memstats_mallocs_total"
	requests = "goshield_gateway_requests_total"
	limited  = `goshield_ratelimit_decisions_total{result="allow",scope="service"}`
	parked   = `goshield_gateway_connections{state="parked"}`
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
