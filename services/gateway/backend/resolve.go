package backend

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"go.uber.org/zap"
)

// resolver looks a service's name up again and again, and tells the service what it
// finds. A look-up that fails, or finds nothing, changes nothing.
type resolver struct {
	service *service // static
	name    string   // host:port
	cancel  context.CancelFunc
	ended   chan struct{}
}

// startResolver looks up at once and then each interval, until stop.
func startResolver(s *service, name string) *resolver {
	ctx, cancel := context.WithCancel(context.Background())
	v := &resolver{service: s, name: name, cancel: cancel, ended: make(chan struct{})}
	go v.run(ctx)
	return v
}

// stop ends the resolver and waits for it; its service must not be locked.
func (v *resolver) stop() {
	v.cancel()
	<-v.ended
}

// run ends when ctx does.
func (v *resolver) run(ctx context.Context) {
	defer close(v.ended)
	r := v.service.router
	var last []string
	failing := false
	for {
		addresses, err := v.lookup(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.metrics.resolveFailures.WithLabelValues(v.service.name).Inc()
			if !failing {
				v.service.log.Warn("look-up failed; the last answer stays in force", zap.String("name", v.name), zap.Error(err))
			}
		case !slices.Equal(addresses, last):
			v.service.resolved(v, addresses)
			last = addresses
		}
		failing = err != nil
		select {
		case <-time.After(r.timing.resolve):
		case <-ctx.Done():
			return
		}
	}
}

// lookup is the addresses behind the name, sorted, each once.
func (v *resolver) lookup(ctx context.Context) ([]string, error) {
	host, port, err := net.SplitHostPort(v.name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	found, err := v.service.router.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("no addresses")
	}
	addresses := make([]string, 0, len(found))
	for _, ip := range found {
		addresses = append(addresses, net.JoinHostPort(ip, port))
	}
	slices.Sort(addresses)
	return slices.Compact(addresses), nil
}
