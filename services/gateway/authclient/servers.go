package authclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sort"
	"sync"
	"time"
)

const (
	resolveEvery   = 5 * time.Second
	resolveTimeout = time.Second
	minBackoff     = 100 * time.Millisecond
	maxBackoff     = 10 * time.Second
	// lastResort is the longest that a server is left alone when there is no
	// other: recovery is seen within it.
	lastResort = 250 * time.Millisecond
	// slowStrikes is how many calls in a row may time out before a server counts as failed;
	// one may be the call's own fault.
	slowStrikes = 3
)

// errBackingOff: every server failed a moment ago.
var errBackingOff = errors.New("every server failed a moment ago")

// server is one address behind the name. Its fields are guarded by the servers' lock.
type server struct {
	hostport string
	strikes  int           // timeouts in a row
	backoff  time.Duration // 0: healthy
	failedAt time.Time
}

// servers is what stands behind one name, and who of them is well.
type servers struct {
	host, port string
	lookup     func(ctx context.Context, host string) ([]string, error)
	ctx        context.Context // of resolving in the background
	cancel     context.CancelFunc
	background sync.WaitGroup

	mu         sync.Mutex
	list       []*server
	turn       int
	resolvedAt time.Time
	resolving  bool
}

func newServers(host, port string, lookup func(context.Context, string) ([]string, error)) *servers {
	s := &servers{host: host, port: port, lookup: lookup}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if net.ParseIP(host) != nil {
		s.list = []*server{{hostport: net.JoinHostPort(host, port)}}
	}
	return s
}

func (s *servers) close() {
	s.cancel()
	s.background.Wait()
}

// candidates are the servers to try, in order: one that failed and is due another chance, then the
// healthy ones, beginning with the one whose turn it is.
func (s *servers) candidates(ctx context.Context, now time.Time) ([]*server, error) {
	if err := s.refresh(ctx, now); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var healthy, failed []*server
	for i := range s.list {
		srv := s.list[(i+s.turn)%len(s.list)]
		if srv.backoff == 0 {
			healthy = append(healthy, srv)
		} else {
			failed = append(failed, srv)
		}
	}
	s.turn++
	for _, srv := range failed {
		wait := srv.backoff
		if len(healthy) == 0 {
			wait = min(wait, lastResort)
		}
		if now.Sub(srv.failedAt) < wait {
			continue
		}
		srv.failedAt = now // this call is its chance; the others leave it alone
		return append([]*server{srv}, healthy...), nil
	}
	if len(healthy) == 0 {
		return nil, errBackingOff
	}
	return healthy, nil
}

func (s *servers) succeeded(srv *server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	srv.strikes, srv.backoff = 0, 0
}

func (s *servers) failed(srv *server, now time.Time, timedOut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if timedOut {
		if srv.strikes++; srv.strikes < slowStrikes && srv.backoff == 0 {
			return
		}
	}
	srv.failedAt = now
	srv.backoff = min(max(2*srv.backoff, minBackoff), maxBackoff)
}

// refresh resolves the name: at once if that was never done, in the
// background when the addresses have become old.
func (s *servers) refresh(ctx context.Context, now time.Time) error {
	if net.ParseIP(s.host) != nil {
		return nil
	}
	s.mu.Lock()
	known := len(s.list) > 0
	if (known && now.Sub(s.resolvedAt) < resolveEvery) || (known && s.resolving) {
		s.mu.Unlock()
		return nil
	}
	s.resolving = true
	s.mu.Unlock()
	if !known {
		return s.resolve(ctx)
	}
	s.background.Go(func() { _ = s.resolve(s.ctx) }) // ends within resolveTimeout; the old addresses stay where it fails
	return nil
}

// resolve replaces the list; servers that stay keep what is known of them.
func (s *servers) resolve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	hosts, err := s.lookup(ctx, s.host)
	sort.Strings(hosts)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resolving = false
	s.resolvedAt = time.Now()
	if err != nil || len(hosts) == 0 {
		return fmt.Errorf("resolve %s: %w", s.host, errors.Join(err, errNoAddress(hosts)))
	}
	old := make(map[string]*server, len(s.list))
	for _, srv := range s.list {
		old[srv.hostport] = srv
	}
	list := make([]*server, 0, len(hosts))
	for _, h := range hosts {
		hostport := net.JoinHostPort(h, s.port)
		srv := old[hostport]
		if srv == nil {
			srv = &server{hostport: hostport}
		}
		list = append(list, srv)
	}
	s.list = list
	return nil
}

func errNoAddress(hosts []string) error {
	if len(hosts) == 0 {
		return errors.New("no address")
	}
	return nil
}
