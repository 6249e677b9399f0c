package admin

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// silence is how long Shutdown waits for the first request of those who have connected and not said anything yet.
const silence = time.Second

// arrivals are the connections whose first request has not come to its handler. http's Shutdown takes them for idle: it hangs up
// on who has connected and is about to ask, and even on who has just asked.
type arrivals struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	none  chan struct{} // something to hear when there is none any more
}

// arrivalKey is under what the context of a request has its connection.
type arrivalKey struct{}

// watch has the server's connections counted.
func (a *arrivals) watch(s *http.Server) {
	a.conns, a.none = map[net.Conn]struct{}{}, make(chan struct{}, 1)
	s.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			a.mu.Lock()
			a.conns[c] = struct{}{}
			a.mu.Unlock()
		case http.StateClosed, http.StateHijacked:
			a.arrived(c)
		}
	}
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, arrivalKey{}, c)
	}
	next := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(arrivalKey{}).(net.Conn); ok {
			a.arrived(c)
		}
		next.ServeHTTP(w, r)
	})
}

func (a *arrivals) arrived(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, c)
	if len(a.conns) == 0 {
		select {
		case a.none <- struct{}{}:
		default: // one is waiting to be heard
		}
	}
}

func (a *arrivals) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.conns)
}

// wait returns when there is none, or when it has waited for so long, or ctx has ended. Nobody may accept any more.
func (a *arrivals) wait(ctx context.Context, long time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	for a.count() > 0 {
		select {
		case <-a.none:
		case <-ctx.Done():
			return
		}
	}
}
