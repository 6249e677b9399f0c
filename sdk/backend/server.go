// Package backend is a service behind GoShield's gateways: it answers the
// requests of devices and pushes messages to them.
//
//	secret, err := os.ReadFile("/run/secrets/backend") // the same as the gateways' backend.secret_file
//	srv := &backend.Server{
//		Secrets: strings.Fields(string(secret)), // one, or two while it is replaced
//		Handler: func(ctx context.Context, req backend.Request) (backend.Response, error) {
//			return backend.Response{Body: req.Body}, nil // an echo
//		},
//	}
//	go srv.ListenAndServe(":9000") // the gateways' services.<name>.endpoints
//	<-ctx.Done()
//	log.Println(srv.Shutdown(context.Background())) // once all that is in flight is answered
//
// Gateways open a few long-lived links (package sdk/link) and send the requests of
// many devices over each. The server runs the handler for each request on
// a goroutine of its own, at most MaxStreams of them a link.
//
// It stores nothing and retries nothing. A device's identity is what the gateway
// says it is: that is what the shared secret, or mutual TLS, is for.
package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// Handler answers one request. It is called by many goroutines at once.
//
// ctx carries the request's deadline and ends when the device, its gateway or the link
// is gone, when the server is closed, and when Handler has returned; what it returns
// after that is thrown away.
//
// An error becomes the device's ERROR: a *wire.Error of code
// no_such_service, backend_unavailable, backend_timeout or backend_error with its own code
// and message, any other as backend_error with its text, so do not return
// texts that a device must not see. One of link.CodeBackendFailed is backend_error to the device, and
// counts towards the ejection of this backend. A panic is logged and becomes
// backend_error; the server goes on.
type Handler func(ctx context.Context, req Request) (Response, error)

// Request is what a device asks. Its memory is the handler's to keep.
type Request struct {
	ClientID wire.ClientID
	Service  string
	Body     []byte
	JSON     bool   // Body is JSON, and so must the answer be; else protobuf bytes
	Gateway  string // the name of the node that the device is connected to
}

// Response is the answer. Body is copied after the handler has returned; it may be the
// request's own.
type Response struct {
	Body []byte
}

// Server serves gateways. Set its fields, then call ListenAndServe or Serve;
// they must not be changed after that. Handler is required, and one of Secrets and
// Authorize. It ends with Shutdown or Close and is of no use after that.
type Server struct {
	Handler Handler

	// Secrets are those a gateway may show. Authorize, if it is set, decides instead;
	// it must take the same time for every wrong secret (link.SecretIn).
	Secrets   []string
	Authorize func(secret string) bool

	TLS      *tls.Config  // nil: plain TCP. Ask for client certificates here
	Node     string       // this server's name, told to gateways; the host's name
	Services []string     // what it answers for; none: anything
	Log      *slog.Logger // nil: slog.Default()

	MaxFrame   int // longest payload in bytes; link.DefaultMaxFrame
	MaxStreams int // requests handled at once, of each link; link.DefaultMaxStreams
	MaxLinks   int // gateways' links at once; 1024

	mu        sync.Mutex
	started   bool
	ending    bool
	listeners map[net.Listener]struct{}
	links     map[*gatewayLink]struct{} // after their handshake
	pending   map[net.Conn]struct{}     // before it
	serving   sync.WaitGroup            // one for each connection
	workers   workers
	ended     context.Context // ends with Close, and when Shutdown gives up
	end       context.CancelFunc
}

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("backend: server closed")

// ListenAndServe listens on the TCP address and calls Serve.
func (s *Server) ListenAndServe(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return s.Serve(ln)
}

// Serve accepts gateways' links on ln, which it owns, until Shutdown or Close; it then
// returns ErrServerClosed, maybe before they have. It may be called for
// several listeners.
func (s *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	if err := s.start(ln); err != nil {
		return err
	}
	const minPause, maxPause = 5 * time.Millisecond, time.Second
	pause := minPause
	for {
		nc, err := ln.Accept()
		if err == nil {
			pause = minPause
			s.take(nc)
			continue
		}
		if s.isEnding() {
			return ErrServerClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		s.log().Warn("accept failed", "error", err, "pause", pause)
		select { // out of descriptors, most likely: wait without spinning
		case <-time.After(pause):
		case <-s.ended.Done():
		}
		pause = min(2*pause, maxPause)
	}
}

// start checks the configuration once and enters the listener.
func (s *Server) start(ln net.Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ending:
		return ErrServerClosed
	case s.Handler == nil:
		return errors.New("backend: Server.Handler is not set")
	case s.Authorize == nil && !anySet(s.Secrets):
		return errors.New("backend: neither Server.Secrets nor Server.Authorize is set: anybody could speak for any device")
	}
	if !s.started {
		s.started = true
		s.listeners = make(map[net.Listener]struct{})
		s.links = make(map[*gatewayLink]struct{})
		s.pending = make(map[net.Conn]struct{})
		s.ended, s.end = context.WithCancel(context.Background())
		s.workers.init()
	}
	s.listeners[ln] = struct{}{}
	return nil
}

func anySet(secrets []string) bool {
	for _, v := range secrets {
		if v != "" {
			return true
		}
	}
	return false
}

func (s *Server) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

func (s *Server) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.Default()
}

// take starts serving a connection, unless there are too many.
func (s *Server) take(nc net.Conn) {
	most := s.MaxLinks
	if most <= 0 {
		most = 1024
	}
	s.mu.Lock()
	full := len(s.links)+len(s.pending) >= most
	if s.ending || full {
		s.mu.Unlock()
		nc.Close()
		if full {
			s.log().Warn("link refused: too many", "limit", most, "remote", nc.RemoteAddr().String())
		}
		return
	}
	s.pending[nc] = struct{}{}
	s.serving.Add(1)
	s.mu.Unlock()
	go s.serveLink(nc) // ends with the link; Shutdown and Close wait for it
}

// serveLink is one link's whole life.
func (s *Server) serveLink(nc net.Conn) {
	defer s.serving.Done()
	log := s.log().With("remote", nc.RemoteAddr().String())
	conn, err := s.handshake(nc)
	s.mu.Lock()
	delete(s.pending, nc)
	s.mu.Unlock()
	if err != nil {
		log.Warn("link refused", "error", err)
		return
	}
	l := newGatewayLink(s, conn)
	log = log.With("gateway", conn.Peer().Node)
	if !s.enter(l) {
		conn.Close()
	}
	log.Info("link open", "max_frame", conn.Limits().MaxFrame, "max_streams", conn.Limits().MaxStreams)
	err = conn.Serve(l.handle)
	s.mu.Lock()
	delete(s.links, l)
	s.mu.Unlock()
	l.lost()
	log.Info("link closed", "reason", err)
}

func (s *Server) handshake(nc net.Conn) (*link.Conn, error) {
	if s.TLS != nil {
		nc = tls.Server(nc, s.TLS)
	}
	node := s.Node
	if node == "" {
		node, _ = os.Hostname() // only for people
	}
	authorize := s.Authorize
	if authorize == nil {
		authorize = link.SecretIn(s.Secrets...)
	}
	return link.Accept(s.ended, nc, link.Config{
		Node:       node,
		Services:   s.Services,
		MaxFrame:   s.MaxFrame,
		MaxStreams: s.MaxStreams,
	}, authorize)
}

// enter adds a link; a server that is shutting down tells it at once. false:
// the server is closed.
func (s *Server) enter(l *gatewayLink) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Err() != nil {
		return false
	}
	s.links[l] = struct{}{}
	if s.ending {
		l.goaway()
	}
	return true
}

// Links is how many links gateways have open.
func (s *Server) Links() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.links)
}

// Shutdown ends the server gracefully: it accepts no more links, asks the
// gateways to send no new requests, and waits until they have closed their links, which
// they do when all they had in flight is answered. When ctx ends first, the rest is cut
// short and the error says so. Nothing of the server runs once it has returned,
// but for handlers that ignore their ctx: it waits for those too.
func (s *Server) Shutdown(ctx context.Context) error {
	if !s.stopAccepting() {
		return nil
	}
	drained := make(chan struct{})
	go func() { s.serving.Wait(); close(drained) }() // ends with the last link
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		n, m := s.cut()
		err = fmt.Errorf("backend: %d links with %d requests cut short: %w", n, m, context.Cause(ctx))
		<-drained
	}
	s.end()
	s.workers.stop()
	return err
}

// Close ends the server at once: links break, and every handler's ctx ends. It waits
// for handlers to return.
func (s *Server) Close() {
	if s.stopAccepting() {
		s.cut()
		s.serving.Wait()
		s.workers.stop()
	}
}

// stopAccepting closes the listeners and what has not shaken hands, and says
// good-bye on every link. false: the server never started.
func (s *Server) stopAccepting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	for ln := range s.listeners {
		ln.Close()
	}
	for nc := range s.pending {
		nc.Close()
	}
	for l := range s.links {
		l.goaway()
	}
	return s.started
}

// cut breaks every link and returns how many there were, with how many
// requests.
func (s *Server) cut() (links, requests int) {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.links {
		links++
		requests += l.inFlight()
		l.conn.Close()
	}
	return links, requests
}
