// Command echo-backend runs GoShield's example backend; see package echo.
package main

import (
	"os"
	"time"

	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/echo-backend/echo"
)

func main() {
	os.Exit(service.Main(service.Process[echo.Config]{
		Name:     "echo-backend",
		Defaults: echo.DefaultConfig,
		New: func(cfg echo.Config, deps service.Deps) (service.Server, error) {
			srv, err := echo.New(cfg, deps)
			if err != nil {
				return nil, err // not a typed nil
			}
			return srv, nil
		},
		Admin: func(cfg *echo.Config) string { return cfg.Admin },
		Drain: func(*echo.Config) time.Duration { return echo.DrainTimeout },
	}))
}
