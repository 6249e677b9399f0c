//go:build !linux

package relay_test

import (
	"go.uber.org/zap"

	"github.com/goshield/goshield/services/lb/relay"
)

// engines are all there are on this system.
func engines(s relay.Settings) map[string]engine {
	return map[string]engine{"goroutines": relay.New(relay.Options{Log: zap.NewNop(), Settings: s})}
}
