package health

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/internal/porttest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience is how long a probe may take that is to have an answer.
const patience = 30 * time.Second

// listen serves each connection with handle until the test ends.
func listen(t *testing.T, network, addr string, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(2 * patience))
			handle(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-ended })
	return ln.Addr().String()
}

func run(t *testing.T, p Probe, timeout time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return p(ctx)
}

// runOut is run for a target that never answers: the time is up as soon as it was asked.
func runOut(t *testing.T, p Probe, asked <-chan struct{}) error {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	go func() { // ends with the test, at the latest
		select {
		case <-asked:
			cancel(context.DeadlineExceeded)
		case <-ctx.Done():
		}
	}()
	return p(timeUp{ctx})
}

// timeUp is a context whose end passes for that of its time.
type timeUp struct{ context.Context }

func (c timeUp) Err() error {
	if c.Context.Err() != nil {
		return context.Cause(c.Context)
	}
	return nil
}

func check(t *testing.T, name string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v, want success", name, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: %v, want an error with %q", name, err, want)
	}
}

func TestTCP(t *testing.T) {
	got := make(chan string, 1)
	addr := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	for _, tt := range []struct {
		name        string
		proxyHeader bool
		want        string
	}{
		{"plain", false, ""},
		// The PROXY protocol §2.2: signature, version 2 and command LOCAL, no family, no bytes.
		{"with header", true, "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x20\x00\x00\x00"},
	} {
		check(t, tt.name, run(t, TCP(addr, tt.proxyHeader), patience), "")
		if b := <-got; b != tt.want {
			t.Errorf("%s: sent %q, want %q", tt.name, b, tt.want)
		}
	}
	check(t, "nobody listens", run(t, TCP(porttest.Held(t), false), patience), "connect: connection refused")
}

func TestTCPOverIPv6(t *testing.T) {
	addr := listen(t, "tcp6", "[::1]:0", func(net.Conn) {})
	check(t, addr, run(t, TCP(addr, false), patience), "")
}

func TestExchange(t *testing.T) {
	asked := make(chan struct{}, 1)
	silent := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 4))
		asked <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	})
	ponger := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err == nil && string(b) == "PING" {
			_, _ = io.WriteString(c, "PONG and more")
		}
	})
	for _, tt := range []struct {
		name         string
		addr         string
		send, expect string
		want         string
	}{
		{"right answer", ponger, "PING", "PONG", ""},
		{"wrong answer", ponger, "PING", "pong", "answered 504f4e47, want 706f6e67"},
		{"closed without answer", ponger, "QUIT", "PONG", "answered 0 of 4 bytes: EOF"},
		{"no answer", silent, "PING", "PONG", "answered 0 of 4 bytes: "},
	} {
		probe := Exchange(tt.addr, false, []byte(tt.send), []byte(tt.expect))
		if tt.addr == silent {
			check(t, tt.name, runOut(t, probe, asked), tt.want)
		} else {
			check(t, tt.name, run(t, probe, patience), tt.want)
		}
	}
}

func TestHTTP(t *testing.T) {
	release, hanging := make(chan struct{}), make(chan struct{}, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			_, _ = io.WriteString(w, "ready\n")
		case "/draining":
			http.Error(w, "not ready: draining\nmore", http.StatusServiceUnavailable)
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/binary":
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte{0, 1, 2})
		case "/hang":
			hanging <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	}))
	defer srv.Close()
	defer close(release)
	addr := strings.TrimPrefix(srv.URL, "http://")
	_, port, _ := net.SplitHostPort(addr)
	for _, tt := range []struct {
		template string
		want     string
	}{
		{"http://{addr}/ok", ""},
		{"http://{host}:" + port + "/ok", ""},
		{"http://{addr}/draining", "answered 503 Service Unavailable: not ready: draining"},
		{"http://{addr}/moved", "answered 302 Found"},
		{"http://{addr}/binary", "answered 500 Internal Server Error"},
		{"http://{addr}/hang", "context deadline exceeded"},
		{"http://" + porttest.Held(t) + "/", "connect: connection refused"},
	} {
		p, err := HTTP(tt.template, addr)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(tt.template, "hang") {
			check(t, tt.template, runOut(t, p, hanging), tt.want)
		} else {
			check(t, tt.template, run(t, p, patience), tt.want)
		}
	}
}

func TestTemplate(t *testing.T) {
	for _, tt := range []struct {
		template, addr string
		want           string
		err            string
	}{
		{"http://{host}:9090/readyz", "10.0.0.1:8443", "http://10.0.0.1:9090/readyz", ""},
		{"http://{addr}/", "10.0.0.1:8443", "http://10.0.0.1:8443/", ""},
		{"http://{host}:9090/readyz", "[2001:db8::1]:8443", "http://[2001:db8::1]:9090/readyz", ""},
		{"http://{host}:9090/", "[fe80::1%eth0]:8443", "http://[fe80::1%25eth0]:9090/", ""},
		{"https://{host}/", "10.0.0.1:1", "", "must be a URL with http"},
		{"{host}:9090", "10.0.0.1:1", "", "must be a URL such as"},
		{"http://{hots}:9090/", "10.0.0.1:1", "", "must be a URL such as"},
		{"", "10.0.0.1:1", "", "must be a URL such as"},
	} {
		got, err := URL(tt.template, tt.addr)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s of %s = %q, %v, want %q, %q", tt.template, tt.addr, got, err, tt.want, tt.err)
		}
	}
}
