package auth_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
)

// TestUnreadableRequests: what is no request has an answer that says so, the connection ends, and none of it is in the log.
func TestUnreadableRequests(t *testing.T) {
	w := embedded(t, nil)
	for _, tt := range []struct {
		name, request string
		status        int
		code          wire.Code
	}{
		{"no HTTP", "who is there\r\n\r\n", 400, authapi.CodeBadRequest},
		{"long head", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 9<<10) + "\r\n\r\n", 431, authapi.CodeBadRequest},
		{"length is no number", "POST " + authapi.PathVerify + " HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400, authapi.CodeBadRequest},
		{"a header that is none", "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + gatewaySecret + "\r\n" + gatewaySecret + "\r\n\r\n", 400, authapi.CodeBadRequest},
		{"far too long", "POST " + authapi.PathVerify + " HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", 413, authapi.CodeBodyTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", w.srv.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(conn, tt.request); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(conn)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			var p authapi.Problem
			if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || p.Status != tt.status || p.Code != tt.code || resp.Header.Get("Content-Type") != authapi.ProblemType {
				t.Errorf("status %d, %s %+v; want %d %s", resp.StatusCode, resp.Header.Get("Content-Type"), p, tt.status, tt.code)
			}
			if _, err := r.ReadByte(); err == nil {
				t.Error("the connection goes on")
			}
		})
	}
	w.enrol(newID())
	eventually(t, "the log has them", func() bool { return strings.Count(w.log.String(), "error when serving connection") >= 2 })
	if log := w.log.String(); strings.Contains(log, gatewaySecret) || strings.Contains(log, "who is there") {
		t.Errorf("the log quotes a request: %s", log)
	}
}

// TestShutdownCutsOff: a request that outlasts the patience of Shutdown loses its connection.
func TestShutdownCutsOff(t *testing.T) {
	w := start(t, freeze(t), func(c *auth.Config) { c.Redis.Timeout = 4 * time.Second })
	answer := make(chan error, 1)
	go func() { // ends with the connection
		_, err := w.exchange("POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: newID(), Token: wire.Token{1}})
		answer <- err
	}()
	eventually(t, "the request is under way", func() bool { return w.srv.InFlight() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.srv.Shutdown(ctx); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("Shutdown() = %v, want that a request was cut off", err)
	}
	if err := <-answer; err == nil {
		t.Error("the request was answered")
	}
	if conn, err := net.Dial("tcp", w.srv.Addr()); err == nil {
		_ = conn.Close()
		t.Error("it still accepts connections")
	}
}

// TestConnectionsAreKept: one connection carries request after request.
func TestConnectionsAreKept(t *testing.T) {
	w := embedded(t, nil)
	conn, err := net.Dial("tcp", w.srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(conn)
	for i := range 3 {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n\r\n", authapi.PathDevices, adminSecret)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if _ = resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("request %d: status %d, %v", i, resp.StatusCode, err)
		}
		if _, err := http.ParseTime(resp.Header.Get("Date")); err != nil || resp.Header.Get("Server") != "" {
			t.Errorf("request %d: Date %q, Server %q", i, resp.Header.Get("Date"), resp.Header.Get("Server"))
		}
	}
}
