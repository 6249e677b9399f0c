package token

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

const (
	// askReplicasEvery is how often a Redis that has no replicas is asked for them again.
	askReplicasEvery = 5 * time.Second
	// askReplicasFor is how long the question may take; an earlier deadline of the caller's holds.
	askReplicasFor = 2 * time.Second
)

// replicas knows whether this Redis has replicas at all. A Redis that was set up without
// any is not waited for; one whose replica was lost is, in vain, and that is the point: what
// must not be lost is not handed out. So once a replica was seen, replicas are expected for good.
type replicas struct {
	rdb redis.UniversalClient
	log *zap.Logger

	mu     sync.Mutex
	seen   bool          // a replica
	none   bool          // the last answer was: no replica
	asked  time.Time     // when that was
	asking chan struct{} // not nil while one caller asks; closed when it has done so
	logged bool
	// silent are the primaries, by address, whose latest write no replica has confirmed.
	silent map[string]span
}

// span is the first and the last of several unconfirmed writes in a row.
type span struct{ first, last time.Time }

func newReplicas(rdb redis.UniversalClient, log *zap.Logger) *replicas {
	return &replicas{rdb: rdb, log: log, silent: map[string]span{}}
}

// expected reports whether writes are to be waited for. Now and then a caller has to ask. Until there was
// a first answer the others wait for it, as long as ctx lets them; later they go by the last one. While
// it is not known, replicas are expected.
func (r *replicas) expected(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.seen:
	case r.asking == nil && (!r.none || time.Since(r.asked) >= askReplicasEvery):
		r.ask(ctx)
	case !r.none: // another one asks
		answered := r.asking
		r.mu.Unlock()
		select {
		case <-answered:
		case <-ctx.Done():
		}
		r.mu.Lock()
	}
	return !r.none
}

// ask is called, and returns, with the lock held; it asks without. The answer is not this caller's alone, so its
// going away does not matter.
func (r *replicas) ask(ctx context.Context) {
	limit := time.Now().Add(askReplicasFor)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(limit) {
		limit = deadline
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), limit)
	defer cancel()
	r.asking = make(chan struct{})
	r.mu.Unlock()
	has, err := hasReplicas(ctx, r.rdb)
	r.mu.Lock()
	close(r.asking)
	r.asking = nil
	if err != nil {
		return // the write that follows meets the same fault, and reports it
	}
	r.seen, r.none, r.asked = has, !has, time.Now()
	if !has && !r.logged {
		r.logged = true
		r.log.Warn("redis has no replicas: tokens are handed out without waiting for one")
	}
}

// hasReplicas asks for replicas, those that are down included where that can be told.
func hasReplicas(ctx context.Context, rdb redis.UniversalClient) (bool, error) {
	if c, ok := rdb.(*redis.ClusterClient); ok {
		nodes, err := c.ClusterNodes(ctx).Result()
		var refused redis.Error
		if !errors.As(err, &refused) {
			return strings.Contains(nodes, "slave"), err
		} // else a single server, behind a client that was opened while it was away
	}
	role, err := rdb.Do(ctx, "role").Slice()
	if err != nil || len(role) < 3 {
		return false, err
	}
	list, _ := role[2].([]any)
	return role[0] == "master" && len(list) > 0, nil
}

// note tells whether a replica of that primary has confirmed a write.
func (r *replicas) note(primary string, confirmed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if confirmed {
		delete(r.silent, primary)
		return
	}
	now := time.Now()
	w, ok := r.silent[primary]
	if !ok {
		w.first = now
	}
	w.last = now
	r.silent[primary] = w
}

const (
	// ackLate is how long a replica may be silent that sends a word each second.
	ackLate = 3 * time.Second
	// staysSilent is for how long writes go unconfirmed until it is no mere hiccup.
	staysSilent = time.Second
)

// unconfirmed returns the primaries, in order, that have no replica to confirm a write: as their last writes had it, or as they
// say themselves while nothing is written. It is to be asked each second or so.
func (r *replicas) unconfirmed(ctx context.Context) []string {
	if !r.expected(ctx) {
		return nil
	}
	follows := map[string]follower{}
	var mu sync.Mutex
	err := eachPrimary(ctx, r.rdb, func(ctx context.Context, c *redis.Client) error {
		f := askFollower(ctx, c)
		mu.Lock()
		defer mu.Unlock()
		follows[c.Options().Addr] = f
		return nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for primary, f := range follows {
		w, silent := r.silent[primary]
		if silent && f == followed && time.Since(w.last) > ackLate+staysSilent {
			delete(r.silent, primary) // a hiccup: nothing is missing since
			silent = false
		}
		if silent && w.last.Sub(w.first) >= staysSilent || f == alone && r.seen {
			list = append(list, primary)
		}
	}
	for primary := range r.silent {
		if _, there := follows[primary]; !there && err == nil {
			delete(r.silent, primary) // a primary no more
		}
	}
	slices.Sort(list)
	return list
}

func eachPrimary(ctx context.Context, rdb redis.UniversalClient, do func(context.Context, *redis.Client) error) error {
	switch c := rdb.(type) {
	case *redis.ClusterClient:
		return c.ForEachMaster(ctx, do)
	case *redis.Client:
		return do(ctx, c)
	}
	return nil
}

// follower is what a primary says of its replicas.
type follower uint8

const (
	untold   follower = iota
	followed          // one at least sends its word
	alone
)

// askFollower reads `INFO replication`: a line "slave0:ip=…,state=online,offset=…,lag=1" for each replica, lag being the
// seconds since its last word.
func askFollower(ctx context.Context, c *redis.Client) follower {
	text, err := c.Info(ctx, "replication").Result()
	if err != nil || !strings.Contains(text, "role:master") {
		return untold
	}
	for line := range strings.Lines(text) {
		name, fields, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || !strings.HasPrefix(name, "slave") || !strings.Contains(fields, "state=online") {
			continue
		}
		_, lag, _ := strings.Cut(fields, "lag=")
		seconds, err := strconv.Atoi(lag)
		if err == nil && seconds <= int(ackLate.Seconds()) {
			return followed
		}
	}
	return alone
}
