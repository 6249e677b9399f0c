//go:build linux

package eventloop

import (
	"go.uber.org/zap"

	"github.com/goshield/goshield/services/lb/relay"
)

// An engine is asked and told what package relay's is, so that whoever uses one can use the other.
type (
	// Director is relay's.
	Director = relay.Director
	// Placement is relay's.
	Placement = relay.Placement
	// Event is relay's.
	Event = relay.Event
	// Reason is relay's.
	Reason = relay.Reason
	// Result is relay's.
	Result = relay.Result
	// Settings is relay's.
	Settings = relay.Settings
	// Stats is relay's.
	Stats = relay.Stats
)

// The events and reasons.
const (
	Connected = relay.Connected
	Answered  = relay.Answered

	Finished      = relay.Finished
	ClientReset   = relay.ClientReset
	UpstreamReset = relay.UpstreamReset
	Idle          = relay.Idle
	Unplaced      = relay.Unplaced
	Cut           = relay.Cut
)

// Options is what New needs.
type Options struct {
	Log      *zap.Logger
	Settings Settings
	Loops    int // 0: one per GOMAXPROCS
	// Backlogs is how many bytes the backlogs of all connections may take together; 0: 256 MiB a loop. When they do,
	// connections go on, at some cost, without having any.
	Backlogs int64
}
