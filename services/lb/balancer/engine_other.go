//go:build !linux

package balancer

import (
	"go.uber.org/zap"

	"github.com/goshield/goshield/services/lb/relay"
)

// engine moves the bytes.
type engine = relay.Engine

func newEngine(log *zap.Logger, s relay.Settings) *engine {
	return relay.New(relay.Options{Log: log, Settings: s})
}
