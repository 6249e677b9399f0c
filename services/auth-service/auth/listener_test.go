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

	"github.com/valyala/fasthttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/secret"
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

// TestPanicIsAnswered: it costs its call, not the process.
func TestPanicIsAnswered(t *testing.T) {
	const bearer = "a-secret-of-the-tests"
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(bearer), 0o600); err != nil {
		t.Fatal(err)
	}
	gateway, err := secret.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.ErrorLevel)
	s := &Server{log: zap.New(core), gate: newGate(1), gatewaySecret: gateway} // and no store
	for range 2 {                                                              // the place at the gate is free again
		ctx := &fasthttp.RequestCtx{}
		ctx.Request.Header.SetMethod(http.MethodPost)
		ctx.Request.SetRequestURI(authapi.PathRelease)
		ctx.Request.Header.Set("Authorization", "Bearer "+bearer)
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
