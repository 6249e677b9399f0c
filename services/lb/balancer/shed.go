package balancer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/goshield/goshield/internal/health"
	"github.com/goshield/goshield/internal/secret"
)

// shedPath is where a gateway is asked, from its readiness page on: http://10.0.0.1:9090/readyz leads to
// http://10.0.0.1:9090/api/shed (docs/PROTOCOL.md, Gateway admin).
const shedPath = "api/shed"

// shedTimeout bounds one call.
const shedTimeout = 2 * time.Second

// shedder asks gateways to send devices away that came through this balancer.
type shedder struct {
	client *http.Client
	// source is the address from which this machine connects to an upstream.
	source func(upstream netip.AddrPort) (netip.Addr, error)
}

func newShedder() *shedder {
	return &shedder{
		client: &http.Client{
			Timeout:       shedTimeout,
			Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		source: sourceTo,
	}
}

// shedOrder is what all calls have in common.
type shedOrder struct {
	template string // health.http
	secret   *secret.Secret
	over     time.Duration // in which the devices are told, one after the other
}

// ask asks the gateway at an upstream to send n devices away, and returns how many it will.
func (s *shedder) ask(ctx context.Context, o shedOrder, upstream netip.AddrPort, n int) (int, error) {
	target, err := shedURL(o.template, upstream.String())
	if err != nil {
		return 0, err
	}
	from, err := s.source(upstream)
	if err != nil {
		return 0, fmt.Errorf("find the address that %s knows this balancer by: %w", upstream, err)
	}
	body, err := json.Marshal(map[string]any{"connections": n, "over_ms": o.over.Milliseconds(), "from": []netip.Addr{from}})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+o.secret.First())
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Shed int    `json:"shed"`
		Code string `json:"code"` // of a refusal
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 4<<10)).Decode(&answer)
	if resp.StatusCode != http.StatusAccepted {
		return 0, fmt.Errorf("POST %s: answered %s %s", target, resp.Status, answer.Code)
	}
	if err != nil {
		return 0, fmt.Errorf("POST %s: read the answer: %w", target, err)
	}
	return answer.Shed, nil
}

// shedURL is where the gateway is asked whose readiness page the template finds.
func shedURL(template, upstream string) (string, error) {
	text, err := health.URL(template, upstream)
	if err != nil {
		return "", err
	}
	page, err := url.Parse(text)
	if err != nil {
		return "", err
	}
	return page.ResolveReference(&url.URL{Path: shedPath}).String(), nil
}

// sourceTo asks the system which address it would send from. Nothing is sent: UDP knows no connections.
func sourceTo(upstream netip.AddrPort) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(upstream))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
