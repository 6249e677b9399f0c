//go:build linux

package main

import (
	"context"
	"errors"
	"time"
)

func idleTLSDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		window:      time.Second, // between two looks at the memory
		silence:     5 * time.Second,
		threads:     []int{1},
		connections: []int{9000},
		payload:     64,
		field:       terminators,
	}
	if quick {
		opt.rounds, opt.connections, opt.silence = 1, []int{500}, time.Second
	}
	return opt
}

// Of 9 000 connections, the gateway gets 15 000 in the end: it needs one
// descriptor each, the others two.
const (
	aloneParts, besideParts = 15, 9
	wakeMembers             = 300
)

// sleeping is what idle TLS connections cost a terminator.
type sleeping struct {
	idleness
	Alone *idleness  `json:"alone,omitempty"` // with more connections
	Wake  wakeAnswer `json:"wake"`
	Links float64    `json:"links,omitempty"` // to backends, with all connections
}

var idleTLSMetrics = []metric[sleeping]{
	{"KB per idle device", "KB per idle TLS connection", 2, func(s sleeping) float64 { return s.kilobytes() }, goal{ratio: 0.55, most: 10}},
	{"the same with 15 for each 9", "", 2, func(s sleeping) float64 {
		if s.Alone == nil {
			return orNone(0)
		}
		return s.Alone.kilobytes()
	}, goal{most: 10}},
	{"descriptors per connection", "", 1, func(s sleeping) float64 { return s.descriptorsEach() }, goal{}},
	{"connections to backends at the end", "", 0, func(s sleeping) float64 { return orNone(s.Links) }, goal{most: gatewayLinks}},
	{"µs, first round trip after a silence", "", 0, func(s sleeping) float64 { return micros(s.Wake.First) }, goal{}},
	{"µs, the next one", "", 0, func(s sleeping) float64 { return micros(s.Wake.Second) }, goal{}},
	{"µs more for waking", "µs more for waking", 0, func(s sleeping) float64 { return micros(s.Wake.First - s.Wake.Second) }, goal{most: 100}},
}

func micros(d time.Duration) float64 { return d.Seconds() * 1e6 }

// idleTLS measures the memory of TLS connections that give a sign of life now and
// then, and how long it takes to wake one.
func idleTLS(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := interleave(ctx, opt, func(ctx context.Context, c contestant, s *setting[sleeping], _ *sleeping) (sleeping, error) {
		found, err := idleTLSOnce(ctx, r, c, s, opt)
		if err == nil {
			r.tell("%s: %-8s %5d connections, %6.2f KB each; waking %s, awake %s", s, c.name, found.Connections, found.kilobytes(),
				found.Wake.First.Round(time.Microsecond), found.Wake.Second.Round(time.Microsecond))
		}
		return found, err
	})
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("TLS 1.3 connections, each with a sign of life every %s: a message of %d bytes to the echo server and back for haproxy and "+
		"nginx, a HEARTBEAT of an enrolled device for the gateway, of which one in twenty rotates the token. Medians of %d rounds "+
		"(lowest–highest). Memory is the proxy's own (PSS), without the kernel's for the sockets. The silence before waking takes %s. %s.",
		heartbeat, opt.payload, opt.rounds, opt.silence, rep.Versions)
	for _, s := range settings {
		compare(rep, s, opt, idleTLSMetrics)
	}
	return rep, nil
}

func idleTLSOnce(ctx context.Context, r *rig, c contestant, s *setting[sleeping], opt options) (sleeping, error) {
	var found sleeping
	limit, err := descriptorLimit()
	if err != nil {
		return found, err
	}
	found.Connections = min(s.Connections, (limit-200)/c.descriptors)
	t, err := r.start(ctx, c, s.Threads, opt)
	if err != nil {
		return found, err
	}
	defer t.stop()
	pids, err := t.proxy.pids()
	if err != nil {
		return found, err
	}
	if found.Empty, err = settled(ctx, pids, opt.window); err != nil {
		return found, err
	}
	before, err := descriptors(pids)
	if err != nil {
		return found, err
	}
	crowd, err := t.startCrowd(ctx, crowdSpec{Connections: found.Connections, Payload: opt.payload, Heartbeat: heartbeat})
	if err != nil {
		return found, err
	}
	defer crowd.stop()
	if found.Full, err = settled(ctx, pids, opt.window); err != nil {
		return found, err
	}
	after, err := descriptors(pids)
	if err != nil {
		return found, err
	}
	found.Descriptors = after - before
	if c.ours != "" {
		if err := found.alone(ctx, t, c, crowd, min(s.Connections*aloneParts/besideParts, limit-200), pids, opt); err != nil {
			return found, err
		}
	}
	found.Wake, err = t.wake(ctx, crowd, opt)
	return found, err
}

// alone has further connections join, up to so many.
func (s *sleeping) alone(ctx context.Context, t *trial, c contestant, crowd *peer, most int, pids []int, opt options) error {
	more := crowdSpec{Connections: most - s.Connections, Payload: opt.payload, Heartbeat: heartbeat}
	if err := t.join(ctx, crowd, more); err != nil {
		return err
	}
	full, err := settled(ctx, pids, opt.window)
	if err != nil {
		return err
	}
	s.Alone = &idleness{Connections: most, Empty: s.Empty, Full: full}
	counters, err := t.counters(ctx, c, links)
	if err == nil {
		s.Links = counters[0]
	}
	return err
}

// wake measures round trips of connections that have been silent.
func (t *trial) wake(ctx context.Context, crowd *peer, opt options) (wakeAnswer, error) {
	var answer wakeAnswer
	request := crowdRequest{Wake: &wakeSpec{Members: wakeMembers, Silence: opt.silence}}
	err := crowd.ask(ctx, opt.silence+2*time.Minute, request, &answer)
	if err == nil && answer.Fault != "" {
		err = errors.New(answer.Fault)
	}
	return answer, t.explain(err)
}
