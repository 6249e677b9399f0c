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
		// As when all that may be held for slow readers is: what it reads stays in the kernel until it is written.
		"event loop that may hold nothing": eventloop.New(eventloop.Options{Log: zap.NewNop(), Settings: s, Loops: 2, Backlogs: 1}),
		"goroutines":                       relay.New(relay.Options{Log: zap.NewNop(), Settings: s}),
	}
}
