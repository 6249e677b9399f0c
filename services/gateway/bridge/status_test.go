package bridge

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// FuzzHTTPStatus has a service answer whatever it likes: a status of 200 to 299 with a body of bounded length is an answer,
// all else one of the protocol's errors, and nothing waits for longer than the request does.
func FuzzHTTPStatus(f *testing.F) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 299 Nearly\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"HTTP/1.1 301 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone",
		"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"HTTP/1.1 600 Beyond\r\n\r\n",
		"HTTP/9.9 200 OK\r\n\r\n",
		"SSH-2.0-OpenSSH\r\n",
		"",
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 4000) + "\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + strings.Repeat("x", 70000),
	} {
		f.Add([]byte(answer), true)
	}
	f.Fuzz(func(t *testing.T, answer []byte, isJSON bool) {
		c := newHTTPCaller(Config{Address: "service.test:80", Node: "gw-1", Secret: func() string { return "s" }})
		defer c.close()
		served := make(chan struct{}, 64)
		c.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			go answerWith(there, answer, served)
			return here, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		resp, err := c.handle(ctx, backend.Request{Service: "echo", Body: []byte("{}"), JSON: isJSON})
		if err == nil {
			if len(resp.Body) > maxAnswer || (isJSON && len(resp.Body) == 0) {
				t.Errorf("an answer of %d bytes", len(resp.Body))
			}
			status, ok := finalStatus(answer)
			if ok && (status < 200 || status > 299) {
				t.Errorf("status %d was taken for an answer", status)
			}
			return
		}
		var e *wire.Error
		if !errors.As(err, &e) {
			t.Fatalf("got %v, want one of the protocol's errors", err)
		}
		switch e.Code {
		case wire.CodeBackendError, wire.CodeBackendUnavailable, link.CodeBackendFailed:
		default:
			t.Errorf("got %v, want %s, %s or %s", e, wire.CodeBackendError, wire.CodeBackendUnavailable, link.CodeBackendFailed)
		}
		if strings.Contains(e.Message, "service.test") {
			t.Errorf("%q tells the device an address", e.Message)
		}
	})
}

// finalStatus is the status of an answer as net/http reads it, without those that are informational.
func finalStatus(answer []byte) (int, bool) {
	r := bufio.NewReader(strings.NewReader(string(answer)))
	for range 6 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return 0, false
		}
		_ = resp.Body.Close()
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp.StatusCode, true
		}
	}
	return 0, false
}

// answerWith reads a request's beginning, answers and closes. It ends when the other end does, too.
func answerWith(conn net.Conn, answer []byte, done chan<- struct{}) {
	defer func() { done <- struct{}{} }()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
		return
	}
	_, _ = conn.Write(answer) // whoever reads it may stop before its end
}
