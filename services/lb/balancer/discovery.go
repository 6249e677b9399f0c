package balancer

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// lookupFunc resolves a name to addresses.
type lookupFunc func(ctx context.Context, host string) ([]netip.Addr, error)

func systemLookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// candidate is an address that discovery found.
type candidate struct {
	addr   netip.AddrPort
	weight int
}

// name is one entry of the configuration: an endpoint that stands for one
// upstream, or, from dns, for as many as it has addresses.
type name struct {
	endpoint
	weight int
	every  bool         // every address is an upstream, not the first alone
	last   []netip.Addr // the last answer
	err    error        // the last lookup's
}

// discovery keeps the list of upstreams up to date.
type discovery struct {
	// Static after construction.
	lookup   lookupFunc
	interval time.Duration
	onChange func([]candidate) // hears of each new list
	onError  func(error)       // hears of each round: nil when every name was resolved

	names   []name // owned by refresh
	current []candidate
}

// newDiscovery takes a configuration that has been validated.
func newDiscovery(u Upstreams, lookup lookupFunc, onChange func([]candidate), onError func(error)) *discovery {
	d := &discovery{lookup: lookup, interval: u.Interval, onChange: onChange, onError: onError}
	for _, text := range u.Static {
		e, weight, _ := parseStatic(text)
		d.names = append(d.names, name{endpoint: e, weight: weight})
	}
	if u.DNS != "" {
		e, _ := parseEndpoint(u.DNS)
		d.names = append(d.names, name{endpoint: e, weight: 1, every: true})
	}
	for i := range d.names {
		if a, err := netip.ParseAddr(d.names[i].host); err == nil {
			d.names[i].last = []netip.Addr{a.Unmap()}
		}
	}
	return d
}

// inherit takes the last answers of the discovery before (nil: none), so that a resolver's outage
// just now does not lose them. That one has ended.
func (d *discovery) inherit(before *discovery) {
	if before == nil {
		return
	}
	d.current = before.current
	for i := range d.names {
		n := &d.names[i]
		for _, had := range before.names {
			if n.last == nil && had.host == n.host && len(had.last) > 0 {
				n.last = had.last
				if !n.every {
					n.last = n.last[:1]
				}
			}
		}
	}
}

// run resolves the names each interval until ctx ends. Without names it
// returns at once.
func (d *discovery) run(ctx context.Context) {
	if !slices.ContainsFunc(d.names, func(n name) bool { return n.resolvable() }) {
		return
	}
	ticker := time.NewTicker(d.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			d.refresh(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// refresh resolves every name once, all at the same time, and reports a list that
// changed. A name that cannot be resolved keeps its last answer: a resolver's
// outage must not empty the balancer.
func (d *discovery) refresh(ctx context.Context) {
	lookups, cancel := context.WithTimeout(ctx, max(d.interval, time.Second))
	defer cancel()
	var wg sync.WaitGroup
	for i := range d.names {
		if d.names[i].resolvable() {
			wg.Go(func() { d.names[i].resolve(lookups, d.lookup) })
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	list := d.list()
	if !slices.Equal(list, d.current) {
		d.current = list
		d.onChange(list)
	}
	for _, n := range d.names {
		if n.err != nil {
			d.onError(fmt.Errorf("resolve %s: %w", n.host, n.err))
			return
		}
	}
	d.onError(nil)
}

// resolvable reports whether it is a name and not an address.
func (n *name) resolvable() bool {
	_, err := netip.ParseAddr(n.host)
	return err != nil
}

func (n *name) resolve(ctx context.Context, lookup lookupFunc) {
	addrs, err := lookup(ctx, n.host)
	if err == nil && len(addrs) == 0 {
		err = fmt.Errorf("it has no address")
	}
	n.err = err
	if err != nil {
		return
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare) // IPv4 first
	n.last = slices.Compact(addrs)
	if !n.every {
		n.last = n.last[:1]
	}
}

// list is what all names stand for now; an address that comes twice counts as
// the first says.
func (d *discovery) list() []candidate {
	var list []candidate
	for _, n := range d.names {
		for _, a := range n.last {
			c := candidate{addr: netip.AddrPortFrom(a, n.port), weight: n.weight}
			if !slices.ContainsFunc(list, func(have candidate) bool { return have.addr == c.addr }) {
				list = append(list, c)
			}
		}
	}
	return list
}
