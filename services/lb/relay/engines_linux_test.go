package relay_test

import (
	"go.uber.org/zap"

	"github.com/goshield/goshield/services/lb/eventloop"
	"github.com/goshield/goshield/services/lb/relay"
)

// engines are all there are on this system.
func engines(s relay.Settings) map[string]engine {
	return map[string]engine{
		"event loop": eventloop.New(eventloop.Options{Log: zap.NewNop(), Settings: s, Loops: 2}),
		"goroutines": relay.New(relay.Options{Log: zap.NewNop(), Settings: s}),
	}
}
