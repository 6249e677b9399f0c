package stack

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/configdb"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
)

// The echo backends have other ports each time. A document that an earlier run left in Redis names
// the ports of then, and it counts for more than the stack's own: the echo services would have no backend.

// Found is the document that was in Redis when the stack started.
type Found struct {
	Version int64    // in force; 0: none is set, and Config.Document counts
	Mended  []string // services that led to backends of an earlier run, and now lead to this one's
}

// Found is the document that was in Redis when the stack started.
func (s *Stack) Found() Found { return s.found }

// lookLimit bounds how long the start looks at a document.
const lookLimit = 5 * time.Second

// mendDocument looks whether there is a document in Redis, and gives its echo services this run's endpoints where
// those that it names are gone. What it cannot do is logged: everything else works without.
func (s *Stack) mendDocument() {
	if s.redis != nil {
		return // it has just been started
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
	defer cancel()
	rdb, err := redisdb.Open(ctx, s.redisConfig())
	if err == nil {
		store := configdb.New(rdb)
		for err = s.mend(ctx, store); errors.Is(err, configdb.ErrConflict); err = s.mend(ctx, store) {
			time.Sleep(time.Millisecond) // somebody else was faster: once more, until ctx ends
		}
		err = errors.Join(err, rdb.Close())
	}
	if err != nil {
		s.cfg.Log.Warn("the dynamic document in Redis is left as it is", zap.Error(err))
	}
}

func (s *Stack) mend(ctx context.Context, store *configdb.Store) error {
	entry, err := store.Current(ctx)
	if errors.Is(err, configdb.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	doc, err := entry.Document()
	if err != nil {
		return err // the services refuse it too
	}
	s.found = Found{Version: entry.Version}
	doc.Services = maps.Clone(doc.Services)
	var mended []string
	for name, own := range s.document().Services {
		svc, there := doc.Services[name]
		if there && svc.Protocol == echoServices[name] && abandoned(ctx, svc) {
			svc.Endpoints = own.Endpoints
			doc.Services[name] = svc
			mended = append(mended, name)
		}
	}
	if len(mended) == 0 {
		return nil
	}
	slices.Sort(mended)
	entry, err = store.Put(ctx, doc, entry.Version, "goshield up")
	if err == nil {
		s.found = Found{Version: entry.Version, Mended: mended}
	}
	return err
}

// abandoned reports whether a service leads to nothing but addresses of this machine at which nobody listens.
func abandoned(ctx context.Context, svc dynamic.Service) bool {
	for _, address := range svc.Endpoints {
		host, _, err := net.SplitHostPort(address)
		if err != nil || !net.ParseIP(host).IsLoopback() {
			return false
		}
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return false
		}
	}
	return svc.DNS == ""
}
