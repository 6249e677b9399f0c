package gateway

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/authclient"
)

const (
	releaseEvery = 500 * time.Millisecond
	releasesMax  = 16384 // that wait; more are forgotten, and a push finds the device gone when it comes here
	// lastReleases bounds the last calls of a gateway that ends.
	lastReleases = 2 * time.Second
)

// releases gives sessions that ended back to auth-service, many with one
// call. It is safe for concurrent use.
type releases struct {
	auth authority
	log  *zap.Logger

	flushing sync.Mutex // held over a flush; before mu

	mu      sync.Mutex
	waiting []authapi.Release
}

// add notes a session that ended.
func (r *releases) add(id wire.ClientID, epoch int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) < releasesMax {
		r.waiting = append(r.waiting, authapi.Release{ClientID: id, Epoch: epoch})
	}
}

// run releases now and then until ctx ends.
func (r *releases) run(ctx context.Context) {
	ticker := time.NewTicker(releaseEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.flush(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// flush releases what waits. What auth-service does not take waits on.
func (r *releases) flush(ctx context.Context) {
	r.flushing.Lock() // the last flush of a gateway that ends may meet run's
	defer r.flushing.Unlock()
	for {
		r.mu.Lock()
		n := min(len(r.waiting), authclient.MaxReleases)
		batch := append([]authapi.Release(nil), r.waiting[:n]...)
		r.mu.Unlock()
		if n == 0 {
			return
		}
		if _, err := r.auth.Release(ctx, batch); err != nil {
			r.log.Debug("sessions could not be released", zap.Int("sessions", n), zap.Error(err))
			return
		}
		r.mu.Lock()
		r.waiting = append(r.waiting[:0], r.waiting[n:]...) // only this function takes out
		r.mu.Unlock()
	}
}
