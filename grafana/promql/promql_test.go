package promql

import (
	"slices"
	"strings"
	"testing"
)

func TestOperands(t *testing.T) {
	for _, tt := range []struct {
		name, query string
		want        []string
	}{
		{"comparison", `up == 0`, []string{`up`}},
		{"both sides of or", `up == 0 or redis_up == 0`, []string{`up`, `redis_up`}},
		{"one side twice", `max(a) != min(a) and max(a) > 1`, []string{`max(a)`, `min(a)`}},
		{"arithmetic stays", `rate(a[5m]) / rate(b[5m]) > 0.1`, []string{`rate(a[5m]) / rate(b[5m])`}},
		{"absent", `absent(up{job="lb"} == 1)`, []string{`up{job="lb"}`}},
		{"parentheses", `(a > 1 and b > 1) or (c > 1)`, []string{`a`, `b`, `c`}},
		{"a constant", `vector(1)`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Operands(tt.query)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	inv := readInventory(t)
	for _, tt := range []struct{ name, query, want string }{
		{"fine", `sum by (service) (rate(goshield_gateway_requests_total{code=~"backend_.*", instance="x"}[5m]))`, ""},
		{"a histogram", `goshield_gateway_request_duration_seconds_bucket{le="0.5"}`, ""},
		{"of the runtime", `go_goroutines{job="lb"}`, ""},
		{"does not parse", `sum(`, "unclosed left parenthesis"},
		{"no such metric", `rate(goshield_lb_conections[5m])`, "no metric goshield_lb_conections"},
		{"a histogram without suffix", `goshield_gateway_request_duration_seconds`, "no metric"},
		{"no such label", `goshield_lb_connections{service="x"}`, "has no label service"},
		{"no such value", `goshield_lb_rejected_total{reason="tuesday"}`, "has no reason tuesday"},
		{"no such value among others", `goshield_lb_rejected_total{reason=~"no_upstream|none"}`, "has no reason none"},
		{"grouped by what is not there", `sum by (listener) (goshield_backend_up)`, "no label listener to group by"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := inv.Check(tt.query)
			if got := err != nil; got != (tt.want != "") || got && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func readInventory(t *testing.T) *Inventory {
	t.Helper()
	inv, err := ReadInventory(root)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}
