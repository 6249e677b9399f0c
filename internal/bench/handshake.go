//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

func handshakeDefaults(quick bool) options {
	opt := options{
		rounds:      5,
		warm:        200 * time.Millisecond,
		window:      1200 * time.Millisecond,
		threads:     []int{1},
		connections: []int{16},
		payload:     64,
		field:       handshakers,
	}
	if quick {
		opt.rounds, opt.window = 1, time.Second
	}
	return opt
}

// handshaking is what a terminator did in one round.
type handshaking struct {
	Full    measurement `json:"full"`
	Resumed measurement `json:"resumed"`
}

var handshakeMetrics = []metric[handshaking]{
	{"µs CPU per full handshake", "µs CPU per full handshake", 1, func(h handshaking) float64 { return h.Full.cpuEach() }, goal{ratio: 1.1}},
	{"full handshakes/s", "", 0, func(h handshaking) float64 { return h.Full.rate() }, goal{moreWins: true}},
	{"µs CPU per resumed handshake", "µs CPU per resumed handshake", 1, func(h handshaking) float64 { return h.Resumed.cpuEach() }, goal{ratio: 1.1}},
	{"resumed handshakes/s", "", 0, func(h handshaking) float64 { return h.Resumed.rate() }, goal{moreWins: true}},
}

// handshake measures TLS handshakes, after each of which the connection ends.
func handshake(ctx context.Context, r *rig, opt options) (*report, error) {
	settings, err := interleave(ctx, opt, func(ctx context.Context, c contestant, s *setting[handshaking]) (handshaking, error) {
		found, err := handshakeOnce(ctx, r, c, s, opt)
		if err == nil {
			r.tell("%s: %-8s %6.1f µs CPU full, %6.1f resumed", s, c.name, found.Full.cpuEach(), found.Resumed.cpuEach())
		}
		return found, err
	})
	if err != nil {
		return nil, err
	}
	rep := &report{Versions: versions(opt), Settings: settings}
	rep.say("TLS 1.3 handshakes, certificate ECDSA P-256, key exchange X25519, %s; then the connection ends, without anything "+
		"behind it. So many at the same time; medians of %d rounds (lowest–highest) of %s, ratios of the rounds / of the medians. CPU is the proxy's "+
		"own. %s.", cipherSuite, opt.rounds, opt.window, rep.Versions)
	for _, s := range settings {
		compare(rep, s, opt, handshakeMetrics)
	}
	return rep, nil
}

func handshakeOnce(ctx context.Context, r *rig, c contestant, s *setting[handshaking], opt options) (handshaking, error) {
	var found handshaking
	t, err := r.start(ctx, c, s.Threads, opt)
	if err != nil {
		return found, err
	}
	defer t.stop()
	pids, err := t.proxy.pids()
	if err != nil {
		return found, err
	}
	spec := greetSpec{Address: t.address, AtOnce: s.Connections, Warm: opt.warm, Window: opt.window, PIDs: pids}
	if found.Full, err = t.measureOnce(ctx, "greet-role", spec, opt); err != nil {
		return found, err
	}
	spec.Resume = true
	found.Resumed, err = t.measureOnce(ctx, "greet-role", spec, opt)
	return found, err
}

// greetSpec is the request to clients that only make handshakes. The answer is
// a measurement.
type greetSpec struct {
	Address      string
	AtOnce       int
	Resume       bool // each resumes the session of a first one
	Warm, Window time.Duration
	PIDs         []int
}

func greetRole(_ []string, ask *json.Decoder, answer *json.Encoder) error {
	return answerEach(ask, answer, greetAll)
}

func greetAll(spec greetSpec) (measurement, error) {
	config := clientTLS(nil)
	if spec.Resume {
		config.ClientSessionCache = &oneSession{}
		config.ServerName = "localhost"
		if err := firstSession(spec.Address, config); err != nil {
			return measurement{}, err
		}
	}
	var ending atomic.Bool
	var done atomic.Int64
	failed := make(chan error, spec.AtOnce)
	var running sync.WaitGroup
	for range spec.AtOnce {
		running.Go(func() {
			for !ending.Load() {
				if err := greet(spec.Address, config, spec.Resume); err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	m, err := greetWindow(spec, &done, failed)
	ending.Store(true)
	running.Wait()
	return m, err
}

func greetWindow(spec greetSpec, done *atomic.Int64, failed <-chan error) (measurement, error) {
	if err := pauseUnless(failed, spec.Warm); err != nil {
		return measurement{}, err
	}
	before := done.Load()
	w, err := openWindow(spec.PIDs)
	if err != nil {
		return measurement{}, err
	}
	for pause := spec.Window; w.wanting(); pause = 10 * time.Millisecond {
		if err := pauseUnless(failed, pause); err != nil {
			return measurement{}, err
		}
		w.counts.Done = done.Load() - before
	}
	if err := w.close(); err != nil {
		return measurement{}, err
	}
	return w.result()
}

// firstSession connects until the server has given a ticket.
func firstSession(address string, config *tls.Config) error {
	for range 100 {
		if err := greet(address, config, false); err != nil {
			return err
		}
		if config.ClientSessionCache.(*oneSession).state.Load() != nil {
			return nil
		}
	}
	return errors.New("the server gives no ticket")
}

// greet makes a handshake and ends the connection, which the server may do
// first. All that the server sends is read: its tickets come behind the
// handshake.
func greet(address string, config *tls.Config, resume bool) error {
	raw, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	conn := tls.Client(raw, config)
	if err := conn.Handshake(); err != nil {
		return err
	}
	if resume && !conn.ConnectionState().DidResume {
		return errors.New("the server did not resume the session")
	}
	if conn.CloseWrite() == nil {
		// Nothing comes but tickets, and then an end of any kind.
		_, _ = io.Copy(io.Discard, conn)
	}
	return nil
}

// oneSession is a cache that keeps the first session it is given, so that all
// handshakes resume the same.
type oneSession struct {
	state atomic.Pointer[tls.ClientSessionState]
}

// Get implements tls.ClientSessionCache.
func (o *oneSession) Get(string) (*tls.ClientSessionState, bool) {
	state := o.state.Load()
	return state, state != nil
}

// Put implements tls.ClientSessionCache.
func (o *oneSession) Put(_ string, state *tls.ClientSessionState) {
	if state != nil {
		o.state.CompareAndSwap(nil, state)
	}
}
