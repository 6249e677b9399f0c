// Package bench is a fleet of simulated devices that measures a gateway.
//
//	result, err := bench.Run(ctx, bench.Config{
//		Addr: "127.0.0.1:8443", TLS: tlsConfig, Devices: 1000, Rate: 5000,
//		Duration: 30 * time.Second, Service: "echo", Size: 64,
//	})
//	if err != nil {
//		return err // it could not run at all
//	}
//	result.WriteText(os.Stdout)
//	return result.Err() // what went wrong while it ran
//
// The load is an open loop: requests are due at a constant rate and are sent
// when they are due, whether or not earlier ones were answered. Latency counts
// from the time a request was due, so that a system which stalls cannot hide by
// holding up the generator (coordinated omission). How late the generator itself was is
// measured too: Requests.Lag.
//
// Every body carries the number of its device and of its request, and every answer must be
// the very same bytes: an answer that went astray is counted as wrong_answer.
package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// Defaults of Config.
const (
	DefaultService        = "echo"
	DefaultSize           = 64
	DefaultRequestTimeout = 10 * time.Second
	DefaultConnectLimit   = time.Minute
	DefaultConnecting     = 64
	DefaultMaxOutstanding = 100_000
	// DefaultFirstMAC is the address of the first device, a locally administered
	// one; the others follow it.
	DefaultFirstMAC = 0x02_67_73_00_00_00
)

// Config is what to measure. Addr and Devices are required.
type Config struct {
	Addr string
	TLS  *tls.Config // nil: plain TCP
	// DialContext replaces net.Dialer's.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)

	Devices  int
	FirstMAC uint64 // of the first device; the others count up from it
	// DeviceKey gives a device's key, where enrolment asks for one; may be nil.
	DeviceKey  func(wire.ClientID) *[32]byte
	TokenStore client.TokenStore // nil: in memory, so every device enrols
	Version    byte              // of the device protocol; 0: wire.Version1

	Rate     float64       // requests a second, of all devices together; 0: stay connected, ask nothing
	Duration time.Duration // of the requests, after all devices are connected
	Service  string
	Size     int // of a body, in bytes; at least what its numbers need

	// Connecting is how many devices connect at once, and ConnectLimit how long
	// each may go on trying.
	Connecting   int
	ConnectLimit time.Duration

	RequestTimeout time.Duration // from when a request is due
	// MaxOutstanding is how many requests may be unanswered; one that is due beyond it is not
	// sent and counts as the error not_sent.
	MaxOutstanding int
	// BackoffBase and BackoffCap are the devices' (see client.Config).
	BackoffBase, BackoffCap time.Duration

	// Progress, if not nil, is called once a second, from one goroutine.
	Progress func(Progress)
	Logger   *slog.Logger // the devices'; nil: no logs
}

func (cfg *Config) complete() error {
	if cfg.Devices <= 0 {
		return errors.New("bench: at least one device")
	}
	if cfg.Rate < 0 || cfg.Duration < 0 {
		return errors.New("bench: rate and duration cannot be negative")
	}
	if cfg.Size > wire.DefaultMaxPayload {
		return fmt.Errorf("bench: bodies of %d bytes are over the limit of %d", cfg.Size, wire.DefaultMaxPayload)
	}
	if cfg.FirstMAC == 0 {
		cfg.FirstMAC = DefaultFirstMAC
	}
	if last := cfg.FirstMAC + uint64(cfg.Devices) - 1; last >= 1<<48 {
		return fmt.Errorf("bench: %d devices from %012x on: the last is no MAC address", cfg.Devices, cfg.FirstMAC)
	}
	if cfg.Service == "" {
		cfg.Service = DefaultService
	}
	if cfg.TokenStore == nil {
		cfg.TokenStore = client.MemoryStore()
	}
	orDefault(&cfg.Size, DefaultSize)
	orDefault(&cfg.Connecting, DefaultConnecting)
	orDefault(&cfg.ConnectLimit, DefaultConnectLimit)
	orDefault(&cfg.RequestTimeout, DefaultRequestTimeout)
	orDefault(&cfg.MaxOutstanding, DefaultMaxOutstanding)
	return nil
}

func orDefault[T int | time.Duration](v *T, otherwise T) {
	if *v <= 0 {
		*v = otherwise
	}
}

// Run connects the devices, loads the gateway for cfg.Duration and disconnects
// them. When ctx ends it stops early, and the result is of what was done until then. The
// error says that the configuration cannot be used, or that no device could
// connect; what goes wrong later is in the result.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	f := newFleet(cfg)
	reporting := f.reportProgress()
	defer f.disconnect() // after reporting has ended
	defer reporting()
	f.connect(ctx)
	if f.online() == 0 {
		return nil, fmt.Errorf("no device could connect: %w", f.counts.firstError())
	}
	f.load(ctx)
	return f.result(), nil
}
