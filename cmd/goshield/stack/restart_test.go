package stack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/services/auth-service/auth"
)

// A gateway that is started anew has all its devices back by the tokens they hold: none enrols, none is refused, and what they
// ask of auth-service at once stays within its bounds.
func TestGatewayRestartedUnderAllItsDevices(t *testing.T) {
	devices := 500
	if long {
		devices = 9000
	}
	addrs := redistest.ClusterAddrs()
	if addrs == nil {
		t.Skipf("%s is not set", redistest.EnvCluster)
	}
	doc := quickDocument()
	doc.Heartbeat.Interval, doc.IdleTimeout = 0, 10*doc.IdleTimeout // nothing but the restart closes a connection
	if !long {                                                      // of 9 000 devices so small a gate would refuse most, who come again and again
		doc.GatewayLimit.MaxHandshakes = 8 // the devices' side of the handshakes needs the same cores
	}
	f := startWith(t, Config{Gateways: 1, DataDir: t.TempDir(), Document: doc, Redis: addrs})
	// In a process of their own the devices do not hold up auth-service's goroutines. Past the balancer, which would take two
	// more descriptors a device.
	p := f.elsewhere(t, fleetElsewhere{Devices: devices, Rate: 20, Gateway: f.gateways[0].addr})
	p.wait(5*time.Minute, "all are online and ask", func(r fleetReport) bool { return r.Online == devices && r.Answered > 0 })
	enrolled, verified := f.operations(t, "issue", "ok"), f.operations(t, "verify", "")
	if enrolled < devices { // one that lost the answer enrols twice
		t.Fatalf("%d devices enrolled, want %d", enrolled, devices)
	}
	most, stop := f.watchAuth(t)
	f.KillGateway(0)
	p.wait(time.Minute, "the devices notice", func(r fleetReport) bool { return r.Online < devices/10 })
	started := time.Now()
	if err := f.StartGateway(0); err != nil {
		t.Fatal(err)
	}
	p.wait(5*time.Minute, "every device is back", func(r fleetReport) bool { return r.Online == devices })
	t.Attr("devices_back_after_a_gateway's_restart", fmt.Sprintf("%d after %v", devices, time.Since(started).Round(time.Second)))
	stop()
	if r := p.end(); r.EnrolledAnew != 0 || r.Ended != 0 {
		t.Errorf("%d devices enrolled anew, %d gave up; want none", r.EnrolledAnew, r.Ended)
	}
	if got := f.operations(t, "issue", "ok"); got != enrolled {
		t.Errorf("%d enrolments, want the first %d only", got, enrolled)
	}
	if got := f.operations(t, "verify", "") - verified; got < devices {
		t.Errorf("%d verifies after the restart, want at least %d", got, devices)
	}
	failures := []string{"bad_token", "token_expired", "token_reused", "revoked", "rate_limited"}
	if long { // else on a machine that has other tests to run, too: a call may take over 2 s, and is repeated
		failures = append(failures, "auth_unavailable")
	}
	for _, failed := range failures {
		if got := f.operations(t, "verify", failed); got != 0 {
			t.Errorf("%d verifies failed: %s; the last: %s", got, failed, f.lastLogged(`"operation":"verify","result":"`+failed+`"`))
		}
	}
	if limit := auth.DefaultConfig().MaxInFlight; most() == 0 || most() > limit {
		t.Errorf("auth-service worked on %d requests at once, want some, and at most %d", most(), limit)
	}
}

// watchAuth looks again and again how many requests auth-service works on. stop ends that; most is valid then.
func (f *fleet) watchAuth(t *testing.T) (most func() int, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	peak := 0
	srv := f.auth.running().(*auth.Server)
	go func() { // ends with ctx
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			peak = max(peak, srv.InFlight())
			<-tick.C
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return func() int { return peak }, stop
}

// lastLogged is the last line of the log that has text in it.
func (f *fleet) lastLogged(text string) string {
	last := ""
	for line := range strings.Lines(f.log.String()) {
		if strings.Contains(line, text) {
			last = line
		}
	}
	return last
}

// operations is how many operations auth-service counted, with a result or, for "", with any.
func (f *fleet) operations(t *testing.T, operation, result string) (count int) {
	t.Helper()
	_, page := get(t, "http://"+f.AdminAddr()+"/metrics", "")
	for line := range strings.Lines(page) {
		labels, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok || !strings.HasPrefix(labels, "goshield_auth_operations_total{") || !strings.Contains(labels, `operation="`+operation+`"`) ||
			result != "" && !strings.Contains(labels, `result="`+result+`"`) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		count += int(n)
	}
	return count
}

// pastBalancer dials a gateway itself, with the PROXY header that it wants.
func pastBalancer(gateway string) func(ctx context.Context, network, _ string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, gateway)
		if err != nil {
			return nil, err
		}
		header := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c") // version 2, PROXY, TCP over IPv4, 12 bytes
		from, to := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		for _, a := range []netip.AddrPort{from, to} {
			ip := a.Addr().As4()
			header = append(header, ip[:]...)
		}
		for _, a := range []netip.AddrPort{from, to} {
			header = binary.BigEndian.AppendUint16(header, a.Port())
		}
		if _, err := conn.Write(header); err != nil {
			_ = conn.Close()
			return nil, err
		}
		return conn, nil
	}
}
