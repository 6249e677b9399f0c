package gateway

import (
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/services/gateway/registry"
)

// A gateway that refuses a takeover has not ended the older session: it is told again, and that is
// counted and said, once.
func TestRefusedTakeover(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		calls  int32 // for one takeover
		lost   float64
	}{
		{"ended", http.StatusNoContent, 1, 0},
		{"not there", http.StatusNotFound, 1, 0},
		{"another secret", http.StatusUnauthorized, evictTries, 1},
		{"a fault", http.StatusInternalServerError, evictTries, 1},
		{"a proxy's answer", http.StatusOK, evictTries, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var calls atomic.Int32
			other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				calls.Add(1)
				w.WriteHeader(tt.status)
			}))
			defer other.Close()
			r := newRig(t, testDoc())
			defer r.Kill()
			core, logged := observer.New(zapcore.DebugLevel)
			r.Server.log = zap.New(core)
			r.Server.peers = newPeers("gw-1", secret.Static(testSecret))
			r.Server.peers.timeout = patience
			r.nodes.nodes = map[string]registry.Node{"gw-2": {Push: strings.TrimPrefix(other.URL, "http://")}}
			const takeovers = 2
			for range takeovers {
				r.evict("gw-2", takeover{client: clientID(1), epoch: 7, deadline: math.MaxInt64})
			}
			if got := calls.Load(); got != takeovers*tt.calls {
				t.Errorf("calls = %d, want %d", got, takeovers*tt.calls)
			}
			if got := testutil.ToFloat64(r.Server.metrics.takeoversLost); got != takeovers*tt.lost {
				t.Errorf("takeovers_failed_total = %v, want %v", got, takeovers*tt.lost)
			}
			warnings := logged.FilterLevelExact(zapcore.WarnLevel)
			if got := float64(warnings.Len()); got != tt.lost {
				t.Errorf("warnings = %v, want %v", got, tt.lost)
			}
		})
	}
}
