package stack

// Devices that are moved on purpose, under load, without a request lost: to a gateway that joins, and away from a
// load balancer that ends.

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/lb/balancer"
)

// sessions is how many devices a gateway has; -1: that cannot be told just now.
func (f *fleet) sessions(gateway string) (n int) {
	families, err := f.reg.Gather()
	if err != nil {
		return -1 // a part has just begun or ended
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if family.GetName() == "goshield_gateway_connections" && labels["node"] == gateway && labels["state"] != "handshaking" {
				n += int(m.GetGauge().GetValue())
			}
		}
	}
	return n
}

// unharmed ends a load and checks that nothing was lost.
func (l *load) unharmed(t *testing.T) {
	t.Helper()
	r := l.end(t)
	delete(r.Errors, "interrupted") // by the end of the test
	if len(r.Errors) != 0 || r.Requests.Wrong != 0 || r.Sessions.EnrolledAnew != 0 {
		t.Errorf("errors %v %v, %d wrong answers, %d enrolled anew; want none", r.Errors, r.Samples, r.Requests.Wrong, r.Sessions.EnrolledAnew)
	}
	if r.Sessions.Reconnects == 0 {
		t.Error("no device moved")
	}
}

func TestRebalance(t *testing.T) {
	f := startWith(t, Config{Gateways: 2, DataDir: t.TempDir(), Document: quickDocument(), Rebalance: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.DrainGateway(ctx, 1); err != nil {
		t.Fatal(err)
	}
	const devices = 40
	l := begin(t, f.bench(devices, 200, 10*time.Minute))
	if err := f.StartGateway(1); err != nil {
		t.Fatal(err)
	}
	until(t, 2*time.Minute, "the gateway that joined has its share", func() bool { return f.sessions("gateway-2") >= devices*4/10 })
	l.wait(t, time.Minute, "every device is online", func(p bench.Progress) bool { return p.Online == devices })
	l.unharmed(t)
}

// door is what watches the readiness of a pair of load balancers and sends new connections to the first one
// that is ready, as a load balancer of a cloud, or a name server that checks, would.
type door struct {
	ln    net.Listener
	pair  []*balancer.Server
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

func openDoor(t *testing.T, pair ...*balancer.Server) *door {
	t.Helper()
	ln, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{ln: ln, pair: pair, conns: map[net.Conn]struct{}{}}
	d.wg.Go(d.accept)
	return d
}

// close ends every connection.
func (d *door) close() {
	_ = d.ln.Close()
	d.mu.Lock()
	for c := range d.conns {
		_ = c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *door) accept() {
	for {
		c, err := d.ln.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() { d.relay(c.(*net.TCPConn)) })
	}
}

func (d *door) relay(c *net.TCPConn) {
	defer c.Close()
	for _, lb := range d.pair {
		if ready, _ := lb.Health().Ready(); !ready {
			continue
		}
		up, err := net.Dial("tcp", lb.Addr(deviceListener))
		if err != nil {
			return
		}
		defer up.Close()
		d.mu.Lock()
		d.conns[c], d.conns[up] = struct{}{}, struct{}{}
		d.mu.Unlock()
		var back sync.WaitGroup
		back.Go(func() {
			_, _ = io.Copy(c, up)
			_ = c.CloseWrite()
		})
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
		back.Wait()
		d.mu.Lock()
		delete(d.conns, c)
		delete(d.conns, up)
		d.mu.Unlock()
		return
	}
}

// A load balancer of a pair that is asked to end has the gateways send its devices to the other one first.
func TestBalancerDrained(t *testing.T) {
	f := startWith(t, Config{Gateways: 2, DataDir: t.TempDir(), Document: quickDocument(), Rebalance: true})
	cfg := f.balancerConfig(anyPort)
	cfg.Drain = balancer.Drain{Window: 6 * time.Second, Timeout: time.Minute}
	leaving, err := balancer.New(cfg, service.Deps{Log: f.cfg.Log, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	if err := leaving.Start(); err != nil {
		t.Fatal(err)
	}
	defer leaving.Kill()
	d := openDoor(t, leaving, f.lb.running().(balancerServer).Server)
	defer d.close()

	const devices = 40
	load := f.bench(devices, 200, 10*time.Minute)
	load.Addr = d.ln.Addr().String()
	l := begin(t, load)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := leaving.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown = %v, want no connection cut", err)
	}
	answered := l.wait(t, time.Minute, "every device is online", func(p bench.Progress) bool { return p.Online == devices }).Answered
	l.wait(t, time.Minute, "requests are answered", func(p bench.Progress) bool { return p.Answered > answered+200 })
	l.unharmed(t)
}
