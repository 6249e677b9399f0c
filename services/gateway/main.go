// Command gateway runs GoShield's gateway; see package gateway.
package main

import (
	"os"
	"runtime/debug"
	"time"

	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/gateway/gateway"
)

// gcPercent is how much garbage may come on top of what lives, in percent, unless GOGC says otherwise. Most of what
// lives are sleeping devices, and Go's own 100 would double them (docs/adr/0015-half-the-garbage-in-gateways.md).
const gcPercent = 40

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(service.Main(service.Process[gateway.Config]{
		Name:     "gateway",
		Defaults: gateway.DefaultConfig,
		New: func(cfg gateway.Config, deps service.Deps) (service.Server, error) {
			redisdb.LogTo(deps.Log.Named("redis"))
			srv, err := gateway.New(cfg, deps)
			if err != nil {
				return nil, err // not a typed nil
			}
			return srv, nil
		},
		Admin: func(cfg *gateway.Config) string { return cfg.Admin },
		Drain: func(cfg *gateway.Config) time.Duration { return cfg.Drain.Timeout },
	}))
}
