//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

func idleTLSDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		window:      time.Second, // between two looks at the memory
		silence:     5 * time.Second,
		heartbeat:   20 * time.Second,
		beats:       2,
		threads:     []int{1},
		connections: []int{9000},
		payload:     64,
		field:       sleepers,
	}
	if quick {
		opt.rounds, opt.connections, opt.silence, opt.heartbeat = 1, []int{500}, 2*time.Second, time.Second
	}
	return opt
}

// Of 9 000 connections, the gateway gets 15 000 in the end: it needs one
// descriptor each, the others two.
const (
	aloneParts, besideParts = 15, 9
	wakeMembers             = 300
	sleepBackends           = 2
)

// sleeping is what idle TLS connections cost a terminator.
type sleeping struct {
	idleness
	Alone *idleness  `json:"alone,omitempty"` // with more connections
	Wake  wakeAnswer `json:"wake"`
	Links int        `json:"links,omitempty"` // connections to backends that the system knows, with all devices
}

var idleTLSMetrics = []metric[sleeping]{
	{"KB per idle device", "KB per idle TLS connection", 2, func(s sleeping) float64 { return s.kilobytes() }, goal{ratio: 0.55, most: 10}},
	{"the same with 15 for each 9", "", 2, func(s sleeping) float64 {
		if s.Alone == nil {
			return orNone(0)
		}
		return s.Alone.kilobytes()
	}, goal{most: 10}},
	{"connections held", "", 0, func(s sleeping) float64 { return float64(s.Connections) }, goal{}},
	{"those of 15 for each 9", "", 0, func(s sleeping) float64 {
		if s.Alone == nil {
			return orNone(0)
		}
		return float64(s.Alone.Connections)
	}, goal{}},
	{"descriptors per connection", "", 1, func(s sleeping) float64 { return s.descriptorsEach() }, goal{}},
	{"connections to backends at the end", "", 0, func(s sleeping) float64 { return orNone(float64(s.Links)) }, goal{most: gatewayLinks * sleepBackends}},
	{"µs, first round trip after a silence", "", 0, func(s sleeping) float64 { return micros(s.Wake.First) }, goal{}},
	{"µs, the next one", "", 0, func(s sleeping) float64 { return micros(s.Wake.Second) }, goal{}},
	{"µs more for waking", "µs more for waking", 0, func(s sleeping) float64 { return micros(s.Wake.First - s.Wake.Second) }, goal{most: 100}},
}

func micros(d time.Duration) float64 { return d.Seconds() * 1e6 }

// idleTLS measures the memory of TLS connections that give a sign of life now and
// then, and how long it takes to wake one.
func idleTLS(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := interleave(ctx, opt, func(ctx context.Context, c contestant, s *setting[sleeping]) (sleeping, error) {
		found, err := idleTLSOnce(ctx, r, c, s, opt)
		if err == nil {
			r.tell("%s: %-8s %5d connections, %6.2f KB each; waking %s, awake %s", s, c.name, found.Connections, found.kilobytes(),
				found.Wake.First.Round(time.Microsecond), found.Wake.Second.Round(time.Microsecond))
		}
		if err == nil && found.Alone != nil {
			r.tell("%s: %-8s %5d connections, %6.2f KB each; %d connections to backends", s, c.name, found.Alone.Connections,
				found.Alone.kilobytes(), found.Links)
		}
		return found, err
	})
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("TLS 1.3 connections, each with a sign of life every %s: a message of %d bytes to the echo server and back for haproxy and "+
		"nginx, a HEARTBEAT of an enrolled device for the gateway, of which one in twenty rotates the token. Memory is taken when each has had "+
		"%d of them answered; it is the proxy's own (PSS), without the kernel's for the sockets. Medians of %d rounds (lowest–highest), ratios "+
		"of the rounds / of the medians. The gateway has %d backends with %d links to each; connections to them are those that the kernel tells. "+
		"The silence before waking takes %s, after which the gateway must have parked each device. %s.",
		opt.heartbeat, opt.payload, opt.beats, opt.rounds, sleepBackends, gatewayLinks, opt.silence, rep.Versions)
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
	crowd, err := t.startCrowd(ctx, crowdSpec{Connections: found.Connections, Payload: opt.payload, Heartbeat: opt.heartbeat})
	if err != nil {
		return found, err
	}
	defer crowd.stop()
	if err := t.awaitBeats(ctx, crowd, opt); err != nil {
		return found, err
	}
	if found.Full, err = settled(ctx, pids, opt.window); err != nil {
		return found, err
	}
	after, err := descriptors(pids)
	if err != nil {
		return found, err
	}
	found.Descriptors = after - before
	connections := found.Connections
	if c.ours != "" {
		connections = min(s.Connections*aloneParts/besideParts, limit-200)
		if err := found.alone(ctx, t, crowd, connections, pids, opt); err != nil {
			return found, err
		}
	}
	if err := t.hush(ctx, c, crowd, connections, opt); err != nil {
		return found, err
	}
	request := crowdRequest{Wake: &wakeSpec{Members: wakeMembers}}
	err = crowd.ask(ctx, 2*time.Minute, request, &found.Wake)
	if err == nil && found.Wake.Fault != "" {
		err = errors.New(found.Wake.Fault)
	}
	return found, t.explain(err)
}

// alone has further connections join, up to so many.
func (s *sleeping) alone(ctx context.Context, t *trial, crowd *peer, most int, pids []int, opt options) error {
	more := crowdSpec{Connections: most - s.Connections, Payload: opt.payload, Heartbeat: opt.heartbeat}
	if err := t.join(ctx, crowd, more); err != nil {
		return err
	}
	if err := t.awaitBeats(ctx, crowd, opt); err != nil {
		return err
	}
	full, err := settled(ctx, pids, opt.window)
	if err != nil {
		return err
	}
	s.Alone = &idleness{Connections: most, Empty: s.Empty, Full: full}
	s.Links, err = t.links()
	return err
}

// links counts the connections to all backends, of which each must have some.
func (t *trial) links() (int, error) {
	sum := 0
	for _, backend := range t.backends {
		n, err := establishedTo(backend)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, fmt.Errorf("no connection to the backend at %s", backend)
		}
		sum += n
	}
	return sum, nil
}

// awaitBeats waits until all of a crowd have given as many signs of life as opt says, and had them answered.
func (t *trial) awaitBeats(ctx context.Context, crowd *peer, opt options) error {
	within := 2*time.Duration(opt.beats)*opt.heartbeat + patience
	return t.explain(crowd.do(ctx, within+patience, crowdRequest{Beats: &beatsSpec{Times: opt.beats, Within: within}}))
}

// hush has all of a crowd be silent, until they have been so for long enough. A gateway must have parked every one then.
func (t *trial) hush(ctx context.Context, c contestant, crowd *peer, connections int, opt options) error {
	err := crowd.do(ctx, opt.silence+2*time.Minute, crowdRequest{Hush: &hushSpec{opt.silence}})
	if err != nil {
		return t.explain(err)
	}
	counts, err := t.counters(ctx, c, parked)
	if err == nil && c.ours != "" && counts[0] != float64(connections) {
		err = fmt.Errorf("%.0f of %d devices are parked after a silence of %s", counts[0], connections, opt.silence)
	}
	return err
}
