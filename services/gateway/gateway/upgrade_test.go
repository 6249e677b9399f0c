package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/sdk/wire"
)

// Connections to the WebSocket port that never become sessions end in time, whatever they send.
func TestNoUpgradeEndsInTime(t *testing.T) {
	const early = 9 * time.Second // before any of the HTTP server's own deadlines
	get := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: gateway\r\n" }
	for _, tt := range []struct {
		name      string
		handshake time.Duration
		send      string
		again     string // sent now and then until the end
		status    string // of the answer; "": none
	}{
		{"nothing is sent", 100 * time.Millisecond, "", "", ""},
		{"headers that never end", 100 * time.Millisecond, get("/device"), "X-More: 1\r\n", ""},
		{"a body that never ends", 100 * time.Millisecond, get("/nowhere") + "Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", "404"},
		{"requests that upgrade nothing", patience, get("/nowhere") + "\r\n", get("/nowhere") + "\r\n", "404"},
		{"a subprotocol is missing", patience, get("/device") + "\r\n", "", "400"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, testDoc())
			s := w.gateway("gw-1", func(cfg *Config, times *timings) {
				cfg.TLS.Mode = tlsOff
				times.handshake = tt.handshake
			})
			conn := dialRaw(t, s.WebSocketAddr())
			begun := time.Now()
			if _, err := io.WriteString(conn, tt.send); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			done := make(chan struct{})
			go func() { // ends with the reading below
				defer close(done)
				for tt.again != "" {
					select {
					case <-ended:
						return
					case <-time.After(20 * time.Millisecond):
						_, _ = io.WriteString(conn, tt.again) // it may be closed
					}
				}
			}()
			_ = conn.SetReadDeadline(begun.Add(patience))
			answer, err := io.ReadAll(conn)
			close(ended)
			<-done
			if isTimeout(err) || time.Since(begun) > early {
				t.Errorf("ended after %v (%v), want within %v", time.Since(begun), err, early)
			}
			if got := strings.Count(string(answer), "HTTP/1.1 "+tt.status); (tt.status == "") != (len(answer) == 0) || (tt.status != "" && got != 1) {
				t.Errorf("answer = %q, want one of status %q", answer, tt.status)
			}
			eventually(t, "it is counted", func() bool {
				return testutil.ToFloat64(s.metrics.closed.WithLabelValues(closedHandshake)) == 1 && testutil.ToFloat64(s.metrics.handshaking) == 0
			})
		})
	}
}

// A session does not end when the time for its upgrade is over.
func TestUpgradeOutlivesItsDeadline(t *testing.T) {
	w := newWorld(t, testDoc())
	const handshake = 5 * time.Second // enough for an upgrade, on a machine that is short of time
	s := w.gateway("gw-1", func(cfg *Config, times *timings) {
		cfg.TLS.Mode = tlsOff
		times.handshake = handshake
	})
	b := w.browser(s)
	upgraded := time.Now()
	b.hello(clientID(1))
	time.Sleep(time.Until(upgraded.Add(handshake + 100*time.Millisecond))) // past it
	if status, _ := api(t, s, http.MethodPost, deviceOf(clientID(1), "/messages"), `{"service":"news","body":"x"}`); status != http.StatusAccepted {
		t.Errorf("push = %d, want 202", status)
	}
	var p wire.Push
	b.want(&p)
}
