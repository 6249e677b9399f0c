package client

import (
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Hooks tell what happens to a client, for counting and for tests. Each may be
// nil. They are called from the client's goroutines: they must not block, nor call the
// client.
type Hooks struct {
	// OnConnect: a gateway has welcomed the device.
	OnConnect func(Connected)
	// OnConnectFailed: an attempt has failed; another follows, unless it was Dial's only
	// one.
	OnConnectFailed func(error)
	// OnDisconnect: a connection has ended. The error is a *wire.Error if the
	// gateway said why, and nil if the gateway had asked the device to go.
	OnDisconnect func(error)
	// OnRotate: a new token came with a heartbeat's ack and is stored.
	OnRotate func()
	// OnError: an ERROR frame has come, one that answers a request included.
	OnError func(*wire.Error)
}

// Connected describes a connection that was made.
type Connected struct {
	Enrolled   bool // a new token was issued; otherwise the device resumed with its own
	TLSResumed bool // the TLS handshake was an abbreviated one

	Dial      time.Duration // the TCP connection
	Handshake time.Duration // TLS; 0 without
	Welcome   time.Duration // from HELLO to WELCOME
}

// Total is all of it together.
func (c Connected) Total() time.Duration { return c.Dial + c.Handshake + c.Welcome }

func (h *Hooks) connected(info Connected) {
	if h.OnConnect != nil {
		h.OnConnect(info)
	}
}

func (h *Hooks) connectFailed(err error) {
	if h.OnConnectFailed != nil {
		h.OnConnectFailed(err)
	}
}

func (h *Hooks) disconnected(err error) {
	if h.OnDisconnect != nil {
		h.OnDisconnect(err)
	}
}

func (h *Hooks) rotated() {
	if h.OnRotate != nil {
		h.OnRotate()
	}
}

func (h *Hooks) errored(e *wire.Error) {
	if h.OnError != nil {
		h.OnError(e)
	}
}
