package token

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// attempts is how often a command is sent before it is given up; ctx ends it earlier.
	attempts = 5
	// retryPause lies before a further attempt, except after a redirect.
	retryPause = 20 * time.Millisecond
	// defaultWait is how long WAIT waits for a replica.
	defaultWait = 50 * time.Millisecond
)

// onPrimary sends one write to the primary of key, together with a WAIT for one
// replica if wait is set and there are replicas to wait for. It follows the cluster when the key
// has moved, and repeats the write after a connection's failure: the write has to bear that.
//
// confirmed is true if a replica has the write, or none is needed. The error is the
// write's own; a WAIT that fails leaves it unconfirmed.
func (s *Store) onPrimary(ctx context.Context, key string, wait bool,
	queue func(context.Context, redis.Pipeliner) redis.Cmder) (cmd redis.Cmder, confirmed bool, err error) {
	var limit time.Duration // of the WAIT; 0: none
	if wait = wait && s.replicas.expected(ctx); wait {
		limit = s.wait
	}
	to := target{}
	for attempt := range attempts {
		if attempt > 0 && to.addr == "" {
			if pause(ctx, retryPause<<(attempt-1)) != nil {
				break // err is why the last attempt failed
			}
		}
		var n node
		if n, err = s.node(ctx, key, to); err != nil {
			if !temporary(err) {
				return nil, false, err
			}
			to = target{}
			continue
		}
		cmd, confirmed, err = s.send(ctx, n, limit, queue)
		n.release()
		if err == nil {
			if wait {
				s.replicas.note(n.Options().Addr, confirmed)
			}
			return cmd, confirmed || !wait, nil
		}
		if to = redirect(err); to == (target{}) && !temporary(err) {
			return nil, false, err
		}
		if c, ok := s.rdb.(*redis.ClusterClient); ok {
			c.ReloadState(ctx)
		}
	}
	return nil, false, fmt.Errorf("redis: %w", err)
}

// send has the command go in a batch; one that asks for a slot on its way goes alone. wait 0: for no replica.
func (s *Store) send(ctx context.Context, n node, wait time.Duration,
	queue func(context.Context, redis.Pipeliner) redis.Cmder) (redis.Cmder, bool, error) {
	l := lane{n.Client, wait}
	if !n.asking {
		return s.batches.do(ctx, l, queue)
	}
	o := &order{queue: func(ctx context.Context, p redis.Pipeliner) redis.Cmder {
		p.Do(ctx, "asking")
		return queue(ctx, p)
	}}
	batch{o}.send(ctx, l)
	return o.cmd, o.confirmed, o.cmd.Err()
}

// target is where a redirect sends a command: to the primary that a slot has moved to (MOVED), or, this once, to a
// node that is just receiving it (ASK). What the other nodes tell of the slots may be older than that.
type target struct {
	addr   string
	asking bool
}

func redirect(err error) target {
	if addr, ok := redis.IsMovedError(err); ok {
		return target{addr: addr}
	}
	if addr, ok := redis.IsAskError(err); ok {
		return target{addr: addr, asking: true}
	}
	return target{}
}

// node is a server to send to.
type node struct {
	*redis.Client
	asking bool
	own    bool // opened for this command, closed by release
}

func (n node) release() {
	if n.own {
		_ = n.Close() // its one connection has done its work
	}
}

func (s *Store) node(ctx context.Context, key string, to target) (node, error) {
	switch c := s.rdb.(type) {
	case *redis.Client:
		return node{Client: c}, nil
	case *redis.ClusterClient:
		if to.addr != "" {
			return redirected(ctx, c, to)
		}
		primary, err := c.MasterForKey(ctx, key)
		return node{Client: primary}, err
	}
	return node{}, fmt.Errorf("a %T is no Redis this store can use", s.rdb)
}

// redirected finds the node that a redirect names. One that has no slot yet is not on the
// map: it gets a connection of its own, for this one command.
func redirected(ctx context.Context, c *redis.ClusterClient, to target) (node, error) {
	n := node{asking: to.asking}
	var mu sync.Mutex
	err := c.ForEachMaster(ctx, func(_ context.Context, m *redis.Client) error {
		if m.Options().Addr == to.addr {
			mu.Lock()
			defer mu.Unlock()
			n.Client = m
		}
		return nil
	})
	if err != nil || n.Client != nil {
		return n, err
	}
	o := c.Options()
	n.own = true
	n.Client = redis.NewClient(&redis.Options{
		Addr: to.addr, Protocol: o.Protocol, CredentialsProvider: o.CredentialsProvider, TLSConfig: o.TLSConfig,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
		ContextTimeoutEnabled: true, DialerRetries: 1, MaxRetries: -1, PoolSize: 1, PipelinePoolSize: -1,
		DisableIdentity: true, MaintNotificationsConfig: o.MaintNotificationsConfig,
	})
	return n, nil
}

// temporary reports whether another attempt may go better: the connection failed, or
// the cluster is electing a new primary. What else a server answers is final.
func temporary(err error) bool {
	var answered redis.Error
	if !errors.As(err, &answered) {
		return !errors.Is(err, context.Canceled)
	}
	return redis.IsReadOnlyError(err) || redis.IsClusterDownError(err) || redis.IsLoadingError(err) ||
		redis.IsTryAgainError(err) || redis.IsMasterDownError(err)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
