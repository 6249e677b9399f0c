package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

// noDirectory is a Redis that is away.
type noDirectory struct{ directory }

func (noDirectory) Locate(context.Context, wire.ClientID) (registry.Owner, error) {
	return registry.Owner{}, errors.New("no Redis")
}

// While nobody can tell where a device is, a call for it says so: 404 would mean that it is nowhere.
func TestPushAPIWithoutRedis(t *testing.T) {
	const message = `{"service":"news","body":1}`
	for _, tt := range []struct {
		name         string
		away         bool
		forwarded    bool
		method, rest string
		status       int
		code         wire.Code
	}{
		{"push", true, false, http.MethodPost, "/messages", http.StatusServiceUnavailable, codeUnavailable},
		{"kick", true, false, http.MethodDelete, "/session", http.StatusServiceUnavailable, codeUnavailable},
		{"where", true, false, http.MethodGet, "", http.StatusServiceUnavailable, codeUnavailable},
		{"push of another gateway, which knew better", true, true, http.MethodPost, "/messages", http.StatusNotFound, codeNotConnected},
		{"kick of another gateway", true, true, http.MethodDelete, "/session", http.StatusNotFound, codeNotConnected},
		{"takeover", true, true, http.MethodDelete, "/session?reason=taken_over&epoch=1", http.StatusNotFound, codeNotConnected},
		{"push with Redis", false, false, http.MethodPost, "/messages", http.StatusNotFound, codeNotConnected},
		{"kick with Redis", false, false, http.MethodDelete, "/session", http.StatusNotFound, codeNotConnected},
		{"where with Redis", false, false, http.MethodGet, "", http.StatusNotFound, codeNotConnected},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				sec := secret.Static(testSecret)
				r.Server.peers = newPeers("gw-1", sec)
				if tt.away {
					r.Server.registry = noDirectory{r.nodes}
				}
				req := httptest.NewRequestWithContext(t.Context(), tt.method, deviceOf(clientID(9), tt.rest), strings.NewReader(message))
				req.Header.Set("Authorization", "Bearer "+testSecret)
				if tt.forwarded {
					req.Header.Set(headerForwarded, "gw-2")
				}
				rec := httptest.NewRecorder()
				r.pushHandler(sec).ServeHTTP(rec, req)
				var p authapi.Problem
				if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || rec.Code != tt.status || p.Code != tt.code {
					t.Errorf("answer = %d %s (%v), want %d %s", rec.Code, rec.Body, err, tt.status, tt.code)
				}
			})
		})
	}
}

// A backend without Redis asks its other gateways: one of them has the device.
func TestBackendsPushWithoutRedis(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		r.Server.peers = newPeers("gw-1", secret.Static(testSecret))
		r.Server.registry = noDirectory{r.nodes}
		results := make(chan link.PushResult, 1)
		r.pushFromBackend(clientID(9), "news", []byte(`1`), func(p link.PushResult) { results <- p })
		if got := <-results; got != link.PushNotConnected {
			t.Errorf("result = %v, want not_connected", got)
		}
	})
}
