// Command auth-service issues, verifies, rotates and revokes devices' tokens.
package main

import (
	"os"
	"runtime/debug"
	"time"

	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/auth-service/auth"
)

// gcPercent: next to nothing is kept from call to call, so that a heap of the usual size would be collected dozens of
// times a second.
const gcPercent = 400

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(service.Main(service.Process[auth.Config]{
		Name:     "auth-service",
		Defaults: auth.DefaultConfig,
		New: func(cfg auth.Config, deps service.Deps) (service.Server, error) {
			redisdb.LogTo(deps.Log.Named("redis"))
			return auth.New(cfg, deps)
		},
		Admin: func(cfg *auth.Config) string { return cfg.Admin },
		Drain: func(cfg *auth.Config) time.Duration { return cfg.Drain.Timeout },
	}))
}
