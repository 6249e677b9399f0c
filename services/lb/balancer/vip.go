package balancer

// The virtual IP: whether it is here, and what becomes of its connections when it has left.

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

var vipDesc = prometheus.NewDesc("goshield_keepalived_master", "1 while the virtual IP is on an interface of this host.", nil, nil)

// vipCollector is goshield_keepalived_master, looked up at each scrape, while there is a virtual IP.
type vipCollector struct {
	vip atomic.Pointer[netip.Addr] // nil: none
}

// set takes the configuration's vip: an address, or "".
func (c *vipCollector) set(text string) {
	if vip, err := netip.ParseAddr(text); err == nil {
		c.vip.Store(&vip)
	} else {
		c.vip.Store(nil)
	}
}

// Describe implements prometheus.Collector.
func (c *vipCollector) Describe(descs chan<- *prometheus.Desc) { descs <- vipDesc }

// Collect implements prometheus.Collector.
func (c *vipCollector) Collect(metrics chan<- prometheus.Metric) {
	if vip := c.vip.Load(); vip != nil {
		local, err := isLocal(*vip)
		metrics <- prometheus.MustNewConstMetric(vipDesc, prometheus.GaugeValue, boolFloat(err == nil && local))
	}
}

// isLocal reports whether an address is on an interface of this host.
func isLocal(ip netip.Addr) (bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if have, ok := netip.AddrFromSlice(n.IP); ok && have.Unmap() == ip.Unmap() {
				return true, nil
			}
		}
	}
	return false, nil
}

// vipWatch resets the connections through the virtual IP when that has left this host. Nothing can come or go on them any
// more, and they must not be there when the address returns: a connection that a device, or what translates its
// address, makes from the same port would meet the old one, which answers what it does not expect with neither data nor
// a reset, and the device would wait until it gives up by itself.
type vipWatch struct {
	server *Server
	local  func(netip.Addr) (bool, error)
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// start begins; stop must follow.
func (w *vipWatch) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.ended.Go(func() { w.run(ctx) })
}

// stop ends it, and waits until it has ended. It may be called again, and without start.
func (w *vipWatch) stop() {
	if w.cancel != nil {
		w.cancel()
	}
	w.ended.Wait()
}

// run ends when ctx does.
func (w *vipWatch) run(ctx context.Context) {
	var d departure
	for sleep(ctx, lookEvery) {
		vip := w.server.metrics.vip.vip.Load()
		if vip == nil {
			d = departure{}
			continue
		}
		here, err := w.local(*vip)
		if err != nil || !d.look(*vip, here) {
			continue // what could not be looked up is looked up again
		}
		if n := w.server.engine.CloseLocal(vip.Unmap()); n > 0 {
			w.server.log.Info("the virtual IP has left: its connections are reset", zap.Int("connections", n))
		}
	}
}

const (
	// lookEvery is the time between two looks.
	lookEvery = 250 * time.Millisecond
	// goneFor is how often in a row an address must be found missing to have left: one that is set anew is not.
	goneFor = 2
	// clearFor is how often the connections of an address that has left are then reset: some were still being made.
	clearFor = 20
)

// departure notices that an address leaves.
type departure struct {
	vip  netip.Addr
	here bool // it was, and its connections have not been cleared since
	gone int  // how often in a row it has been missing
}

// look takes whether the address is here, and reports whether its connections are to be reset.
func (d *departure) look(vip netip.Addr, here bool) bool {
	if vip != d.vip {
		*d = departure{vip: vip}
	}
	if here {
		d.here, d.gone = true, 0
		return false
	}
	if !d.here {
		return false
	}
	d.gone++
	d.here = d.gone < goneFor+clearFor-1
	return d.gone >= goneFor
}
