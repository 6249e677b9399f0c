package backend

import (
	"testing"

	"github.com/goshield/goshield/internal/dynamic"
	sdk "github.com/goshield/goshield/sdk/backend"
)

// Faults are counted from 0: a counter that appears with its first fault hides that one from rate().
func TestCountersBeginAtZero(t *testing.T) {
	addr := serve(t, &sdk.Server{Handler: named("1")})
	r := newTestRouter(t, nil)
	r.apply(map[string]dynamic.Service{"svc": serviceAt(addr)})
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range families {
		for _, m := range f.Metric {
			if m.Counter != nil && m.Counter.GetValue() == 0 {
				got[f.GetName()]++
			}
		}
	}
	for name, want := range map[string]int{
		"goshield_backend_ejections_total": 1, "goshield_backend_resolve_failures_total": 1,
		"goshield_backend_dropped_answers_total": 2, "goshield_backend_retries_total": 3,
	} {
		if got[name] != want {
			t.Errorf("%s: %d series at 0, want %d", name, got[name], want)
		}
	}
}
