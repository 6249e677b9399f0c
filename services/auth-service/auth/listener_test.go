package auth

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/valyala/fasthttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/internal/service"
)

// scripted is a listener that has its answers ready.
type scripted struct {
	net.Listener
	answers []any // net.Conn or error
}

func (s *scripted) Accept() (net.Conn, error) {
	next := s.answers[0]
	s.answers = s.answers[1:]
	if err, ok := next.(error); ok {
		return nil, err
	}
	return next.(net.Conn), nil
}

func (s *scripted) Close() error { return nil }

// TestAcceptOutlastsAShortage: a lack of descriptors passes, the end of the listener does not.
func TestAcceptOutlastsAShortage(t *testing.T) {
	here, there := net.Pipe()
	defer func() { _ = there.Close() }()
	core, logs := observer.New(zap.WarnLevel)
	ln := newListener(&scripted{answers: []any{
		&net.OpError{Op: "accept", Err: syscall.EMFILE}, &net.OpError{Op: "accept", Err: syscall.ECONNABORTED}, here, net.ErrClosed,
	}}, zap.New(core))
	c, err := ln.Accept()
	if err != nil || logs.Len() != 2 {
		t.Fatalf("Accept() = %v after %d complaints, want a connection after 2", err, logs.Len())
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept() of a closed listener = %v", err)
	}
	ln.cutAll()
	if _, err := there.Write([]byte{1}); err == nil {
		t.Error("a connection outlived cutAll")
	}
	_ = c.Close()
	here, there = net.Pipe()
	ln.track(here)
	if _, err := there.Write([]byte{1}); err == nil {
		t.Error("a connection that came while all were cut goes on")
	}
}

// TestWritesHaveTheirOwnDeadline: not one that an answer left behind.
func TestWritesHaveTheirOwnDeadline(t *testing.T) {
	here, there := net.Pipe()
	defer func() { _ = there.Close() }()
	c := newListener(nil, zap.NewNop()).track(here)
	defer func() { _ = c.Close() }()
	if err := c.SetWriteDeadline(time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = there.Read(make([]byte, 1)) }() // ends with the byte, or with the connection
	if _, err := c.Write([]byte{1}); err != nil {
		t.Errorf("Write() = %v", err)
	}
}

// TestShutdownBeforeItServes: it takes no connection after that, and ends.
func TestShutdownBeforeItServes(t *testing.T) {
	cfg := DefaultConfig()
	cfg.GatewaySecretFile = secretFile(t)
	s, err := New(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.rdb = redis.NewClient(&redis.Options{Addr: ln.Addr().String()}) // nobody asks it
	s.ln, s.http = newListener(ln, s.log), s.newHTTPServer()
	close(s.tended)
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(t.Context()) }()
	<-s.stop // it waits for serve now
	go s.serve()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
	case <-time.After(time.Minute):
		_ = ln.Close()
		t.Fatal("Shutdown does not end")
	}
}

const theSecret = "a-secret-of-the-tests"

func secretFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(theSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestPanicIsAnswered: it costs its call, not the process.
func TestPanicIsAnswered(t *testing.T) {
	gateway, err := secret.Open(secretFile(t))
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.ErrorLevel)
	s := &Server{log: zap.New(core), gate: newGate(1), gatewaySecret: gateway} // and no store
	for range 2 {                                                              // the place at the gate is free again
		ctx := &fasthttp.RequestCtx{}
		ctx.Request.Header.SetMethod(http.MethodPost)
		ctx.Request.SetRequestURI(authapi.PathRelease)
		ctx.Request.Header.Set("Authorization", "Bearer "+theSecret)
		ctx.Request.Header.SetContentType(typeJSON)
		ctx.Request.SetBodyString(`[{"client_id":"` + strings.Repeat("ab", 32) + `","epoch":1}]`)
		s.handle(ctx)
		if got := ctx.Response.StatusCode(); got != http.StatusInternalServerError {
			t.Errorf("status %d %s, want 500", got, ctx.Response.Body())
		}
	}
	if logs.Len() != 2 {
		t.Errorf("%d lines in the log, want 2", logs.Len())
	}
}
