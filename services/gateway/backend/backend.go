// Package backend takes the gateway's requests to the services behind it: many
// devices over few long-lived links.
//
//	r := backend.NewRouter(backend.Config{Node: "gw-1", Secret: sec, Log: log, Metrics: reg, OnPush: deliver})
//	if err := r.Apply(doc.Services); err != nil { // again at every change of the configuration
//		return err
//	}
//	h := r.Send(backend.Request{ClientID: id, Service: "echo", Body: body, JSON: true, MaxReply: 16384}, session, tag)
//	...
//	h.Cancel()                  // the device is gone
//	err := r.Shutdown(ctx)      // requests in flight are answered first
//
// A service is a set of endpoints, listed or found by DNS; each endpoint has a
// few links (package sdk/link), opened before they are needed and opened again
// with a growing, jittered pause when they break. A request goes to the endpoint that the
// service's algorithm picks and there to the least busy link. Every request ends: with an
// answer, with the service's timeout, or at once when its link breaks.
//
// It knows no sessions, tokens or limits, and it stores nothing: what cannot be
// sent now is refused now.
package backend

import (
	"context"
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// Config is what a Router needs. Node, Secret, Log and Metrics are required.
type Config struct {
	Node   string         // this gateway's name, told to backends
	Secret *secret.Secret // shown to backends; its first value
	// TLS is called for each connection that is opened, from many goroutines, and returns a configuration that is the
	// caller's; it must not block for long. nil: plain TCP.
	TLS        func() *tls.Config
	ServerName string // what backends' certificates must name; "": the host of each endpoint, or of the service's DNS name
	Log        *zap.Logger
	Metrics    prometheus.Registerer
	OnPush     PushFunc // nil: every push is answered "not connected"
	// Lookup resolves the host names of services found by DNS; nil: the
	// system's resolver.
	Lookup func(ctx context.Context, host string) ([]string, error)
}

// Request is what a device asks of a service.
type Request struct {
	ClientID wire.ClientID
	Service  string
	Body     []byte // copied before Send returns
	JSON     bool   // the body is JSON, and so must the answer be; else protobuf bytes
	MaxReply int    // longest answer in bytes that the device can take; 0: no limit
}

// Waiter is told of the answers to its requests. Done is called from a
// goroutine that serves many requests: it must not block and must not call into
// the Router for long. tag is the one that was given to Send.
type Waiter interface {
	Done(tag uint32, r Reply)
}

// Reply is an answer, or why there is none.
type Reply struct {
	Body []byte      // valid only during Done
	Err  *wire.Error // nil, or of code no_such_service, backend_unavailable, backend_timeout or backend_error; shared: not to be changed
}

// PushFunc is handed a message that a backend pushes to a device. It is called
// from a link's reading goroutine and must not block; body is valid during the
// call. done must be called with what became of the message, from any goroutine; only
// the first call counts, and after 5 s the backend is told that it timed
// out whether or not done was called.
type PushFunc func(id wire.ClientID, service string, body []byte, done func(link.PushResult))
