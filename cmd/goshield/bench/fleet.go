package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// The phases of a run, as Progress names them.
const (
	phaseConnecting = "connecting"
	phaseLoad       = "load"
	phaseFinishing  = "finishing"
)

// fleet is one run.
type fleet struct {
	cfg    Config
	counts *counts

	devices   []*device
	connected []*device // those that are; static after connect

	connectTimes  *recorder
	handshakeTime *recorder
	latency       *recorder
	lag           *recorder

	// Written by connect and load, read after them.
	connectTook      time.Duration
	handshakesBefore int64 // until all were connected
	loadTook         time.Duration

	// Anybody's.
	phase        atomic.Pointer[string]
	closing      atomic.Bool  // disconnects are ours from now on
	onlineNow    atomic.Int64 // devices that have a connection
	notConnected atomic.Int64 // devices that gave up
	failedDials  atomic.Int64 // attempts
	handshakes   atomic.Int64
	tlsResumed   atomic.Int64
	enrolled     atomic.Int64
	resumed      atomic.Int64
	reconnects   atomic.Int64
	enrolledAnew atomic.Int64
	rotations    atomic.Int64
	rotated      atomic.Int64 // devices
	outstanding  atomic.Int64
	sent         atomic.Int64
	answered     atomic.Int64
	wrong        atomic.Int64
	failed       atomic.Int64
}

// device is one of the fleet.
type device struct {
	number    int
	client    *client.Client
	wasOnline atomic.Bool
	rotated   atomic.Bool
}

func newFleet(cfg Config) *fleet {
	f := &fleet{
		cfg:           cfg,
		counts:        newCounts(),
		devices:       make([]*device, cfg.Devices),
		connectTimes:  newRecorder(),
		handshakeTime: newRecorder(),
		latency:       newRecorder(),
		lag:           newRecorder(),
	}
	for i := range f.devices {
		f.devices[i] = &device{number: i}
	}
	f.enter(phaseConnecting)
	return f
}

func (f *fleet) enter(phase string) { f.phase.Store(&phase) }

func (f *fleet) online() int { return int(f.onlineNow.Load()) }

// connect dials every device, cfg.Connecting of them at once, and returns when
// each is connected or has given up.
func (f *fleet) connect(ctx context.Context) {
	start := time.Now()
	next := make(chan *device)
	var dialling sync.WaitGroup
	for range min(f.cfg.Connecting, len(f.devices)) {
		dialling.Go(func() { f.dialFrom(ctx, next) })
	}
	for _, d := range f.devices {
		next <- d
	}
	close(next)
	dialling.Wait()
	f.connectTook, f.handshakesBefore = time.Since(start), f.handshakes.Load()
	for _, d := range f.devices {
		if d.client != nil {
			f.connected = append(f.connected, d)
		}
	}
}

// dialFrom connects one device after the other. It ends when there is none left.
func (f *fleet) dialFrom(ctx context.Context, next <-chan *device) {
	for d := range next {
		if err := f.dial(ctx, d); err != nil {
			f.notConnected.Add(1)
			f.counts.add(err)
		}
	}
}

func (f *fleet) dial(ctx context.Context, d *device) error {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.ConnectLimit)
	defer cancel()
	id, err := wire.ClientIDFromMAC(fmt.Sprintf("%012x", f.cfg.FirstMAC+uint64(d.number)))
	if err != nil {
		return err
	}
	cfg := client.Config{
		Addr: f.cfg.Addr, TLS: f.cfg.TLS, DialContext: f.cfg.DialContext, ClientID: id, TokenStore: f.cfg.TokenStore,
		Version: f.cfg.Version, Agent: "goshield bench", KeepDialing: true, Logger: f.cfg.Logger, Hooks: f.hooks(d),
		BackoffBase: f.cfg.BackoffBase, BackoffCap: f.cfg.BackoffCap,
	}
	if f.cfg.DeviceKey != nil {
		cfg.DeviceKey = f.cfg.DeviceKey(id)
	}
	start := time.Now()
	d.client, err = client.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	f.connectTimes.record(d.number, time.Since(start))
	return nil
}

// hooks count what happens to a device.
func (f *fleet) hooks(d *device) client.Hooks {
	return client.Hooks{
		OnConnect: func(c client.Connected) {
			f.onlineNow.Add(1)
			if f.cfg.TLS != nil {
				f.handshakes.Add(1)
				f.handshakeTime.record(d.number, c.Handshake)
				if c.TLSResumed {
					f.tlsResumed.Add(1)
				}
			}
			switch again := d.wasOnline.Swap(true); {
			case again && c.Enrolled:
				f.enrolledAnew.Add(1)
				f.reconnects.Add(1)
			case again:
				f.reconnects.Add(1)
			case c.Enrolled:
				f.enrolled.Add(1)
			default:
				f.resumed.Add(1)
			}
		},
		OnConnectFailed: func(error) { f.failedDials.Add(1) },
		OnDisconnect: func(err error) {
			f.onlineNow.Add(-1)
			if err == nil || f.closing.Load() {
				return // moved to another gateway as it was asked to
			}
			f.counts.addDisconnect(err)
		},
		OnRotate: func() {
			f.rotations.Add(1)
			if !d.rotated.Swap(true) {
				f.rotated.Add(1)
			}
		},
	}
}

// disconnect closes every device, cfg.Connecting of them at once.
func (f *fleet) disconnect() {
	f.closing.Store(true)
	next := make(chan *device)
	var closing sync.WaitGroup
	for range min(f.cfg.Connecting, len(f.devices)) {
		closing.Go(func() { // ends when there is none left
			for d := range next {
				_ = d.client.Close() // never fails
			}
		})
	}
	for _, d := range f.connected {
		next <- d
	}
	close(next)
	closing.Wait()
}
