// lb is the load balancer's process. See package balancer, and
// `lb --help` for its flags.
package main

import (
	"os"
	"runtime"
	"time"

	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/lb/balancer"
)

func main() {
	os.Exit(service.Main(service.Process[balancer.Config]{
		Name:     "lb",
		Defaults: balancer.DefaultConfig,
		New: func(cfg balancer.Config, deps service.Deps) (service.Server, error) {
			s, err := balancer.New(cfg, deps)
			// One processor more than the event loops that New has settled on, one for each there were: see
			// package eventloop on measurements.
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
			return s, err
		},
		Admin: func(cfg *balancer.Config) string { return cfg.Admin },
		Drain: func(cfg *balancer.Config) time.Duration { return cfg.Drain.Timeout },
	}))
}
