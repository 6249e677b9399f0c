package balancer

import (
	"go.uber.org/zap"

	"github.com/goshield/goshield/services/lb/eventloop"
	"github.com/goshield/goshield/services/lb/relay"
)

// engine moves the bytes.
type engine = eventloop.Engine

func newEngine(log *zap.Logger, s relay.Settings) *engine {
	return eventloop.New(eventloop.Options{Log: log, Settings: s, Backlogs: backlogMemory()})
}
