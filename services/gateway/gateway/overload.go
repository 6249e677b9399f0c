package gateway

import (
	"context"
	"io"
	"math"
	"net"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
)

// Overload: what is connected is served, and who comes is told to come later. Two caps decide: gateway_limit.max_connections,
// and memory, where there is a limit (GOMEMLIMIT). The third, of handshakes, is the gate's.

const (
	// overloadRetry is what devices are told that came over a cap.
	overloadRetry = 5 * time.Second
	// farewellsMax is how many refused devices are told so at once: over TLS that takes a handshake. The others are closed.
	farewellsMax = 64
	// memoryShare of the limit is what may be in use before new connections are refused. The rest is for what the
	// connected ones need, and for garbage.
	memoryShare = 0.8
	memoryCheck = 100 * time.Millisecond
)

// full reports whether new connections are refused for want of memory.
func (s *Server) full() bool { return s.memoryFull.Load() }

// refuse ends a connection over a cap.
func (s *Server) refuse(sock *socket) {
	s.metrics.gatewayRefused.Inc()
	s.metrics.handshakes.WithLabelValues(handshakeOverloaded).Inc()
	select {
	case s.farewells <- struct{}{}:
		if s.begin() {
			go s.sayOverloaded(sock)
			return
		}
		<-s.farewells
	default:
	}
	_ = sock.Close() // without a word
}

// sayOverloaded tells a refused device when to come again. It ends within the deadlines of a handshake, of what a device of
// the kind has to say first, and of last words, or with the gateway.
func (s *Server) sayOverloaded(sock *socket) {
	defer s.work.Done()
	defer func() { <-s.farewells }()
	defer sock.Close()
	defer context.AfterFunc(s.ctx, func() { _ = sock.Close() })()
	conn, _, err := s.secure(sock)
	if err != nil {
		return // there is nobody to tell
	}
	e := wire.Errorf(wire.CodeOverloaded, "this gateway has as many connections as it takes")
	e.RetryAfter, e.Close = jitter(overloadRetry), true
	switch sock.kind {
	case websocketKind:
		s.web.turnAway(conn, sock, e)
		return
	case mqttKind:
		err = newMQTTStream(conn, sock).turnAway(e)
	case deviceKind:
		err = (&stream{Conn: conn, sock: sock}).turnAway(e)
	}
	if err == nil {
		_, _ = io.CopyN(io.Discard, sock.Conn, discardMax) // bytes left unread would turn the close into a reset
	}
}

// turnAway says e and ends the outgoing direction. It sets the deadline of all that follows.
func (s *stream) turnAway(e *wire.Error) error {
	frame, err := wire.Append(nil, wire.Version1, e)
	if err != nil {
		return err
	}
	return s.lastWords(s, frame)
}

// lastWords writes frame by way of to, which ends in s.
func (s *stream) lastWords(to io.Writer, frame []byte) error {
	if err := s.sock.Conn.SetDeadline(time.Now().Add(s.sock.srv.timings.linger)); err != nil {
		return err
	}
	if _, err := to.Write(frame); err != nil {
		return err
	}
	return s.CloseWrite()
}

// secure does what comes before the first byte of a device's own: PROXY header and TLS. With an error, result is the
// metric's.
func (s *Server) secure(sock *socket) (conn net.Conn, result string, err error) {
	if len(s.proxies) > 0 {
		if err := sock.readProxyHeader(s.timings.proxyHeader); err != nil {
			return nil, handshakeProxy, err
		}
	}
	if s.tls == nil {
		return sock, handshakeOK, nil
	}
	if conn, err = s.handshakeTLS(sock); err != nil {
		return nil, handshakeResult(err), err
	}
	return conn, handshakeOK, nil
}

// watchMemory keeps memoryFull, where the process has a limit. It ends with the gateway.
func (s *Server) watchMemory() {
	limit := debug.SetMemoryLimit(-1) // reads it
	if limit == math.MaxInt64 {
		return
	}
	s.log.Info("new connections are refused when memory runs short", zap.Int64("limit_bytes", limit), zap.Float64("share", memoryShare))
	samples := memorySamples()
	for s.sleep(memoryCheck) {
		full := inUse(samples) > memoryShare*float64(limit)
		if s.memoryFull.Swap(full) != full && full {
			s.log.Warn("memory runs short: new connections are refused")
		}
	}
}

func memorySamples() []runtimemetrics.Sample {
	return []runtimemetrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
}

// inUse is what the process needs, in bytes: all but garbage, and what the runtime keeps for later. It is as of the latest
// garbage collection, which come often when memory is short.
func inUse(samples []runtimemetrics.Sample) float64 {
	runtimemetrics.Read(samples)
	used := float64(samples[0].Value.Uint64()) + float64(samples[1].Value.Uint64())
	for _, s := range samples[2:] {
		used -= float64(s.Value.Uint64())
	}
	return used
}
