// Package bridge lets services that speak HTTP or gRPC stand where a link's
// backend would.
//
//	conn, err := bridge.Dial(ctx, bridge.Config{Protocol: bridge.HTTP, Address: "10.0.0.7:9001", ...})
//	if err != nil {
//		return err // the service cannot be reached, or is not well
//	}
//	l, err := link.Open(ctx, conn, ...) // as to any other backend
//	...
//	conn.Wait() // after the link has ended
//
// The connection is a pipe. At its other end a server of sdk/backend turns each
// request into a call, and the answer into a RESPONSE. So deadlines, cancelling,
// ejection, retries and pushes are the router's, the same for every protocol, and
// this package knows only how to make one call and how to ask for health.
//
// It balances nothing and retries nothing: one bridge is one endpoint.
package bridge

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/health"
	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/wire"
)

// Protocol is what a service speaks.
type Protocol string

// The protocols, as the configuration names them.
const (
	HTTP Protocol = "http"
	GRPC Protocol = "grpc"
)

// MaxCalls is how many calls one bridge has under way; the router sends no more.
const MaxCalls = 1024

// maxAnswer is the longest answer that any frame could carry, in bytes.
const maxAnswer = wire.MaxPayload

func tooLong() error {
	return wire.Errorf(wire.CodeBackendError, "the backend's answer is over the limit of %d bytes", maxAnswer)
}

// Config says which service, and how it is reached. All but TLS, HTTP2 and
// HealthPath are required.
type Config struct {
	Protocol Protocol
	Address  string             // host:port
	Node     string             // this gateway's name; begins each call's request id
	Secret   func() string      // shown as "Authorization: Bearer …"
	TLS      func() *tls.Config // called for each connection, its answer is the bridge's; ServerName is the same each time. nil: clear text
	Log      *zap.Logger        // with the endpoint's name

	HTTP2      bool   // HTTP only: version 2, in clear text as well, instead of 1.1
	HealthPath string // HTTP only: GET it, 200 to 399 is well; "": connecting is enough
}

// caller makes calls to one service. Its methods are safe for concurrent use.
type caller interface {
	handle(ctx context.Context, req backend.Request) (backend.Response, error)
	probe(ctx context.Context) error
	// run does what lasts as long as the bridge does. It returns when ctx ends.
	run(ctx context.Context, srv *backend.Server)
	close()
}

// How a service's health is followed while its bridge is up. Once it has
// failed, the bridge leaves, and Dial finds out when the service is back.
const (
	probeInterval = time.Second
	probeTimeout  = time.Second
	probeFall     = 3
)

// longestCall is more than any service's timeout.
const longestCall = 11 * time.Minute

// Conn is the gateway's end of the link to a bridge. Closing it ends the bridge.
type Conn struct {
	net.Conn
	ended chan struct{} // closed when nothing of the bridge runs any more
}

// Wait returns when nothing of the bridge runs any more, soon after Close.
func (c *Conn) Wait() { <-c.ended }

// Dial asks the service whether it is well, and if so returns a connection that
// takes the link's handshake. Whoever gets it closes it, and calls Wait.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	c, err := newCaller(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.probe(ctx); err != nil {
		c.close()
		return nil, fmt.Errorf("%s: %w", cfg.Address, err)
	}
	near, far := net.Pipe()
	b := &bridge{
		caller: c,
		log:    cfg.Log,
		far:    &endingConn{Conn: far, ended: make(chan struct{})},
		unwell: make(chan string, 1),
	}
	b.server = &backend.Server{
		Handler:    c.handle,
		Authorize:  func(string) bool { return true }, // the other end is this process
		Node:       string(cfg.Protocol) + " " + cfg.Address,
		MaxStreams: MaxCalls,
		Log:        slog.New(slog.DiscardHandler), // the gateway's end says the same
	}
	conn := &Conn{Conn: near, ended: make(chan struct{})}
	go b.serve(conn.ended) //nolint:gosec // G118: it lives as long as the link, not as the dialling
	return conn, nil
}

func newCaller(cfg Config) (caller, error) {
	switch cfg.Protocol {
	case HTTP:
		return newHTTPCaller(cfg), nil
	case GRPC:
		return newGRPCCaller(cfg)
	}
	return nil, fmt.Errorf("protocol %q has no bridge", cfg.Protocol)
}

// bridge is the service's end of the pipe.
type bridge struct {
	caller caller
	log    *zap.Logger
	server *backend.Server
	far    *endingConn
	unwell chan string // capacity 1: why the service is to be left
}

// serve is the bridge's whole life.
func (b *bridge) serve(ended chan<- struct{}) {
	defer close(ended)
	defer b.caller.close()
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { _ = b.server.Serve(newOneConn(b.far)) })
	work.Go(func() { b.caller.run(ctx, b.server) })
	monitor := health.Start(b.caller.probe, health.Rule{
		Interval: probeInterval, Timeout: probeTimeout, Rise: 1, Fall: probeFall,
	}, b.changed)
	select {
	case reason := <-b.unwell:
		b.log.Warn("the service is not well", zap.String("reason", reason))
		// The router is asked for no more, and closes the link when all is answered.
		leaving, done := context.WithTimeout(ctx, longestCall)
		_ = b.server.Shutdown(leaving) // in time, or Close below
		done()
	case <-b.far.ended:
	}
	monitor.Stop()
	cancel()
	b.server.Close()
	work.Wait()
}

// changed hears of the service's health.
func (b *bridge) changed(c health.Change) {
	if c.To != health.Down {
		return
	}
	select {
	case b.unwell <- c.Reason:
	default:
	}
}

// endingConn tells when it was closed.
type endingConn struct {
	net.Conn
	once  sync.Once
	ended chan struct{}
}

func (c *endingConn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	conns  chan net.Conn // capacity 1
	once   sync.Once
	closed chan struct{}
}

func newOneConn(c net.Conn) *oneConn {
	l := &oneConn{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conns <- c
	return l
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is of no account.
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "bridge", Net: "pipe"} }
