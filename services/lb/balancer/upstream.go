package balancer

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/internal/balance"
	"github.com/goshield/goshield/internal/health"
)

// adminState is what an operator wants of an upstream.
type adminState string

const (
	ready adminState = "ready"
	drain adminState = "drain" // no new connections, the old go on
	down  adminState = "down"  // no new connections, the old are reset
)

func parseAdminState(text string) (adminState, error) {
	switch s := adminState(text); s {
	case ready, drain, down:
		return s, nil
	}
	return "", fmt.Errorf("state must be ready, drain or down, got %q", text)
}

// upstream is one address that connections can go to, of one pool.
type upstream struct {
	// Static after construction.
	addr   netip.AddrPort // as discovered; a listener may connect to another port of it
	name   string         // addr as text
	target *balance.Target
	joined time.Time

	unwilling atomic.Bool // it could not be asked, last time, to send devices away

	// Guarded by pool.mu.
	listed  bool            // discovery knows it; if not, it stays until its last connection has ended
	monitor *health.Monitor // nil while it is not listed
	watched int             // how many monitors it has had
	admin   adminState
	upSince time.Time // zero: not up
}

func newUpstream(c candidate) *upstream {
	name := c.addr.String()
	return &upstream{addr: c.addr, name: name, target: balance.NewTarget(name, c.weight), joined: time.Now(), admin: ready}
}

// eligible reports whether it may get connections when health does not matter.
func (u *upstream) eligible() bool { return u.listed && u.admin == ready }

// firstShare is the part of its weight with which an upstream that came up starts.
const firstShare = 0.1

// share is the part of its weight that counts: all of it slowStart after it
// came up.
func (u *upstream) share(now time.Time, slowStart time.Duration) float64 {
	if u.upSince.IsZero() || slowStart == 0 {
		return 1
	}
	return min(1, firstShare+(1-firstShare)*float64(now.Sub(u.upSince))/float64(slowStart))
}

// probe is how an upstream is checked. The configuration has been validated.
func (h Health) probe(addr string, proxyHeader bool) (health.Probe, error) {
	switch {
	case h.HTTP != "":
		return health.HTTP(h.HTTP, addr)
	case h.Expect != "":
		send, _ := hex.DecodeString(h.Send)
		expect, _ := hex.DecodeString(h.Expect)
		return health.Exchange(addr, proxyHeader, send, expect), nil
	default:
		return health.TCP(addr, proxyHeader), nil
	}
}

func (h Health) rule() health.Rule {
	return health.Rule{Interval: h.Interval, Timeout: h.Timeout, Rise: h.Rise, Fall: h.Fall}
}
