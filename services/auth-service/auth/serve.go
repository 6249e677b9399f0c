package auth

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/accept"
	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

const (
	// maxRead is the longest body, in bytes, that is read at all: who sends a little more than authapi.MaxBody learns so in
	// an answer, after his secret was looked at.
	maxRead = 2 * authapi.MaxBody
	// maxConns is how many connections there may be: those of a hundred gateways. With what is read of each before its secret
	// is looked at, strangers can make the process keep 400 MB, and no more.
	maxConns = 16 << 10
	// writeTimeout is how long one write to a caller may take.
	writeTimeout = 30 * time.Second
)

// newHTTPServer has the timeouts and bounds of admin.NewHTTPServer. It is fasthttp's (docs/adr/0019): of what an
// operation on a token takes, package net/http's serving was half.
func (s *Server) newHTTPServer() *fasthttp.Server {
	return &fasthttp.Server{
		Handler:               s.handle,
		ErrorHandler:          unreadable,
		ReadTimeout:           10 * time.Second,
		IdleTimeout:           2 * time.Minute,
		MaxRequestBodySize:    maxRead,
		ReadBufferSize:        8 << 10, // and so much for a request's head
		NoDefaultServerHeader: true,
		NoDefaultContentType:  true,
		CloseOnShutdown:       true,
		Concurrency:           maxConns,
		// It would be parsed before the secret is looked at.
		DisablePreParseMultipartForm: true,
		Logger:                       formats{s.log},
	}
}

// formats is a fasthttp.Logger that leaves out the values: what cannot be read is quoted there, with the secret in it.
type formats struct{ log *zap.Logger }

// Printf implements fasthttp.Logger.
func (f formats) Printf(format string, _ ...any) { f.log.Debug("fasthttp: " + format) }

// handle answers one request.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if r := recover(); r != nil { // without it the process would end: fasthttp does not catch panics
			s.log.Error("a call panicked", zap.Any("panic", r), zap.Stack("stack"))
			ctx.ResetBody()
			writeProblem(ctx, newProblem(http.StatusInternalServerError, wire.CodeInternal, ""))
		}
	}()
	if string(ctx.Path()) == pathOpenAPI {
		serveOpenAPI(ctx)
		return
	}
	to, clientID, err := find(ctx.Method(), ctx.Path())
	if err != nil {
		writeProblem(ctx, problemOf(err))
		return
	}
	s.call(ctx, to, clientID)
}

// unreadable answers what is no request.
func unreadable(ctx *fasthttp.RequestCtx, err error) {
	var head *fasthttp.ErrSmallBuffer
	var network net.Error
	e := &apiError{status: http.StatusBadRequest, code: authapi.CodeBadRequest, detail: "the request cannot be read"}
	switch {
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		e = errBodyTooLarge
	case errors.As(err, &head):
		e = &apiError{status: http.StatusRequestHeaderFieldsTooLarge, code: authapi.CodeBadRequest, detail: "the head is too long"}
	case errors.As(err, &network) && network.Timeout():
		e = &apiError{status: http.StatusRequestTimeout, code: authapi.CodeBadRequest, detail: "the request took too long to come"}
	}
	writeProblem(ctx, problemOf(e))
}

// listener accepts connections, also after a lack of descriptors, and knows those that are open.
type listener struct {
	net.Listener
	log *zap.Logger

	mu   sync.Mutex
	open map[*conn]struct{}
	cut  bool
}

func newListener(ln net.Listener, log *zap.Logger) *listener {
	return &listener{Listener: ln, log: log, open: map[*conn]struct{}{}}
}

// Accept implements net.Listener. The error is that the listener is closed.
func (l *listener) Accept() (net.Conn, error) {
	c, err := accept.Next(l.Listener, func(err error, pause time.Duration) {
		l.log.Warn("no connection can be accepted", zap.Error(err), zap.Duration("pause", pause))
	})
	if err != nil {
		return nil, err
	}
	return l.track(c), nil
}

func (l *listener) track(nc net.Conn) net.Conn {
	c := &conn{Conn: nc, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		_ = nc.Close() // who serves it finds out
		return c
	}
	l.open[c] = struct{}{}
	return c
}

// cutAll closes the listener and every connection, whatever goes on there.
func (l *listener) cutAll() {
	_ = l.Close() // it may be closed already
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for c := range l.open {
		_ = c.Conn.Close()
	}
	clear(l.open)
}

// conn is a connection that its listener knows.
type conn struct {
	net.Conn
	listener *listener
}

// Write implements net.Conn. fasthttp has a deadline for answers only, and leaves it behind: whatever else it writes later
// would fail.
func (c *conn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.open, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
