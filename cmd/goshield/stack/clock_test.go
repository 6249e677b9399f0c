package stack

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// wrongClock stands between a gateway and auth-service and moves every time of day in the answers, as if the gateway's
// clock were wrong by as much the other way: it has no other time of day to compare with its own.
func wrongClock(t *testing.T, addr string, by time.Duration) (wrong string) {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	transport := http.DefaultTransport.(*http.Transport).Clone()
	proxy.Transport = transport
	proxy.ModifyResponse = func(r *http.Response) error {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		_ = r.Body.Close()
		body = moved(body, by)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Set("Content-Length", strconv.Itoa(len(body)))
		return nil
	}
	srv := httptest.NewServer(proxy)
	t.Cleanup(srv.Close)
	t.Cleanup(transport.CloseIdleConnections)
	return strings.TrimPrefix(srv.URL, "http://")
}

// moved is an answer with its expires_at, if it has one, moved.
func moved(body []byte, by time.Duration) []byte {
	var answer map[string]json.RawMessage
	if json.Unmarshal(body, &answer) != nil {
		return body
	}
	at, err := strconv.ParseInt(string(answer["expires_at"]), 10, 64)
	if err != nil {
		return body
	}
	answer["expires_at"] = strconv.AppendInt(nil, at+by.Milliseconds(), 10)
	body, _ = json.Marshal(answer) // of what was just parsed
	return body
}

// Row 46: one gateway's clock is ten minutes slow, the other's as much fast. Both judge tokens alike: what is good is
// good, what is not is not, none is rotated before its time, and each ends when it ends.
func TestGatewayClockIsWrong(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		t.Parallel() // it waits most of the time
		const ttl = 10 * time.Second
		doc := quickDocument()
		doc.Token.TTL, doc.Token.Grace, doc.Token.RotateProbability = dynamic.Duration(ttl), 0, 0
		wrong := map[string]time.Duration{"gateway-1": 10 * time.Minute, "gateway-2": -10 * time.Minute}
		f := startWith(t, Config{Gateways: 2, DataDir: t.TempDir(), Document: doc, Redis: redis,
			authFor: func(gateway, addr string) string { return wrongClock(t, addr, wrong[gateway]) }})
		var devices []*rawDevice
		var tokens []wire.Token
		for f.sessions("gateway-1") == 0 || f.sessions("gateway-2") == 0 { // the balancer takes turns, but who is sent away comes again
			if len(devices) == 10 {
				t.Fatal("ten devices are all at one gateway")
			}
			d, id := f.raw(t), f.device(t, nil).ClientID
			welcomed := time.Now()
			w := d.hello(id, wire.Token{})
			if off := w.ExpiresAt.Sub(welcomed.Add(ttl)).Abs(); off < 9*time.Minute {
				t.Fatalf("WELCOME tells an end that is wrong by %v: no clock is wrong", off)
			}
			d.ask(1, w.Token)
			d.send(&wire.Heartbeat{Token: w.Token})
			var ack wire.HeartbeatAck
			d.want(&ack)
			if early := time.Since(welcomed) < ttl/2; early && !ack.Token.IsZero() {
				t.Error("the token was rotated in the first half of its life, want it in its last tenth")
			}
			tokens = append(tokens, w.Token)
			devices = append(devices, d)
		}
		for range 2 { // at either gateway
			f.raw(t).refused(f.device(t, nil).ClientID, tokens[0], wire.CodeBadToken)
		}
		for _, d := range devices {
			begun := time.Now()
			d.wantClosed(wire.CodeTokenExpired)
			if took := time.Since(begun); long && took > ttl+5*time.Second {
				t.Errorf("closed %v later, want within %v and 5 s", took, ttl)
			}
		}
	})
}
