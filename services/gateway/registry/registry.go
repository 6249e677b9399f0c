// Package registry is what gateways know of each other and of revoked tokens, through Redis: which
// nodes live, which of them holds a device's session, and which tokens
// were revoked.
//
//	r := registry.New(registry.Config{Node: "gw-1", Self: registry.Node{Push: "10.0.0.7:9400"}, Open: open, …})
//	r.Start()
//	owner, err := r.Locate(ctx, id) // who has that device
//	node, err := r.Lookup(ctx, owner.Node)
//	...
//	r.Close(ctx)
//
// A session is valid while its node's key lives; nothing is refreshed per session. All that is
// written here is the node's own key: tokens and owners are auth-service's to write. Redis may go away and come
// back at any time; nothing here ends with it.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
)

// The keys and channels in Redis. A test pins each one.
const (
	nodeKeyPrefix = "goshield:node:"
	// nodesKey is the names of the nodes, by when each was last seen. Whether one lives is for its key to say.
	nodesKey       = "goshield:nodes"
	tokenKeyPrefix = "goshield:token:"
	// revokedName is both the stream and the Pub/Sub channel.
	revokedName = "goshield:revoked"
)

// NodeTTL is how long a node counts as alive after its key was last written.
const NodeTTL = 10 * time.Second

const (
	refreshEvery = 3 * time.Second
	retryEvery   = 500 * time.Millisecond // while Redis is away
	callTimeout  = 2 * time.Second
	streamPage   = 1000
	// namesKept is how long the name of a node that writes no more is kept: far longer than clocks differ.
	namesKept = time.Hour
	maxNodes  = 10_000 // that Nodes tells
)

// ErrNotConnected says that no living node has the device.
var ErrNotConnected = errors.New("not connected")

// errNoRedis: Redis was not reached yet.
var errNoRedis = errors.New("redis was not reached yet")

// Node is what a node's key says.
type Node struct {
	Push  string `json:"push"`  // host:port of its push API
	Admin string `json:"admin"` // host:port of its admin server
	Boot  string `json:"boot"`  // random; another one after a restart
	// NoClientCA: it has none to check devices' certificates with, and so refuses a document whose enrolment asks for them.
	NoClientCA bool `json:"no_client_ca,omitempty"`
}

// Owner is who has a device's session.
type Owner struct {
	Node    string
	Session string
	Epoch   int64
}

// String is the form in which owners are stored and compared: node/session.
func (o Owner) String() string { return o.Node + "/" + o.Session }

// ParseOwner reads node/session; a node's name may hold no slash.
func ParseOwner(text string) (Owner, bool) {
	node, session, ok := strings.Cut(text, "/")
	if !ok || node == "" || session == "" {
		return Owner{}, false
	}
	return Owner{Node: node, Session: session}, true
}

// Record is what Redis says of a device's session.
type Record struct {
	Owner   Owner     // without node and session: nobody; Epoch is that of the last one
	Revoked wire.Code // revoked or token_reused; "": it is not
	Known   bool      // false: there is no record
}

// task is one of the things that a registry does with Redis. In a cluster some may fail while
// others do not.
type task uint8

const (
	taskConnect task = iota
	taskNode
	taskStream
)

// Config is what a Registry needs; all but OnState is required.
type Config struct {
	Node string
	Self Node
	// Open connects to Redis. It is called until it succeeds.
	Open func(ctx context.Context) (redis.UniversalClient, error)
	// Recheck is the time within which a revocation is found in the stream.
	Recheck func() time.Duration
	// OnRevoked hears of a revoked token: announced, at the moment, and once more from the
	// stream, when the device may have enrolled again. It must not block.
	OnRevoked func(Revocation)
	// OnGap hears that revocations may have been missed, or that this node's key had
	// lapsed: every session has to be compared with its record (see Records). It must not block.
	OnGap func(reason string)
	// OnState hears when Redis goes away (with the reason) and when it is back (nil). It must not block.
	OnState func(err error)
	Log     *zap.Logger
}

// Registry keeps this node's key alive and follows revocations. It is safe for
// concurrent use. The maker calls Start once, then Close once.
type Registry struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	loops  sync.WaitGroup
	now    func() time.Time // static: by the calendar, which goes on while the machine sleeps

	mu  sync.Mutex
	rdb redis.UniversalClient // nil until Redis was reached once
	// failing are the tasks whose last try failed; while there is one, OnState has
	// heard why.
	failing map[task]bool
	// Revocations are followed from here on: the stream was read once, and the channel subscribed to.
	streamRead, subscribed bool
}

// New makes a registry; nothing runs yet.
func New(cfg Config) *Registry {
	r := &Registry{cfg: cfg, failing: make(map[task]bool), now: func() time.Time { return time.Now().Round(0) }}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Start begins to connect, to keep the node's key and to follow revocations, in
// the background.
func (r *Registry) Start() {
	r.loops.Go(r.run)
}

// Close ends the background work, deletes the node's key so that nobody forwards to it any more
// (as far as ctx allows), and closes the connection.
func (r *Registry) Close(ctx context.Context) {
	r.end(func(rdb redis.UniversalClient) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		// Both lapse by themselves where this fails.
		_ = rdb.Del(ctx, nodeKeyPrefix+r.cfg.Node).Err()
		_ = rdb.ZRem(ctx, nodesKey, r.cfg.Node).Err()
	})
}

// Kill ends the background work as the process's death would: the key lapses by itself.
func (r *Registry) Kill() { r.end(func(redis.UniversalClient) {}) }

func (r *Registry) end(last func(rdb redis.UniversalClient)) {
	r.cancel()
	r.loops.Wait()
	if rdb, err := r.Client(); err == nil {
		last(rdb)
		_ = rdb.Close() // nothing is left to lose
	}
}

// Following reports whether revocations are seen that happen from now on, as far as
// Redis stays.
func (r *Registry) Following() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streamRead && r.subscribed
}

// note changes something under the lock.
func (r *Registry) note(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// Client is the client of Redis, or an error until it was reached once. It is good until Close or Kill.
func (r *Registry) Client() (redis.UniversalClient, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rdb == nil {
		return nil, errNoRedis
	}
	return r.rdb, nil
}

// run connects, then keeps the key and the feed. It ends when ctx does.
func (r *Registry) run() {
	for {
		rdb, err := r.cfg.Open(r.ctx)
		if err == nil {
			r.mu.Lock()
			r.rdb = rdb
			r.mu.Unlock()
			break
		}
		r.report(taskConnect, err)
		if !r.pause(retryEvery) {
			return
		}
	}
	r.report(taskConnect, nil)
	r.loops.Go(r.keepNode)
	r.loops.Go(r.followStream)
	r.loops.Go(r.followChannel)
}

// pause waits, and reports whether to go on.
func (r *Registry) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// report notes how a task went, and tells OnState of a change.
func (r *Registry) report(t task, err error) {
	if r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	was := len(r.failing) > 0
	if err != nil {
		r.failing[t] = true
	} else {
		delete(r.failing, t)
	}
	is := len(r.failing) > 0
	r.mu.Unlock()
	if was != is && r.cfg.OnState != nil {
		r.cfg.OnState(err)
	}
}

// keepNode writes the node's key again and again. It ends when ctx does.
func (r *Registry) keepNode() {
	value, err := json.Marshal(r.cfg.Self)
	if err != nil {
		panic("registry: a Node always marshals: " + err.Error())
	}
	var written time.Time // when the last write that succeeded was begun: Redis may have had it at once, whenever it answered
	for {
		begun := r.now()
		err := r.writeNode(value)
		r.report(taskNode, err)
		wait := refreshEvery
		if err != nil {
			wait = retryEvery
		} else {
			if !written.IsZero() && r.now().Sub(written) > NodeTTL {
				r.cfg.OnGap("this node's key had lapsed")
			}
			written = begun
		}
		if !r.pause(wait) {
			return
		}
	}
}

// wallSince counts the time that the machine slept, too; a monotonic clock may not.
func wallSince(t time.Time) time.Duration { return time.Now().Round(0).Sub(t.Round(0)) }

func (r *Registry) writeNode(value []byte) error {
	rdb, err := r.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	if err := rdb.Set(ctx, nodeKeyPrefix+r.cfg.Node, value, NodeTTL).Err(); err != nil {
		return err
	}
	r.writeName(ctx, rdb)
	return nil
}

// writeName notes this node among the names, and forgets old ones. Where it fails, Nodes lacks this
// node until the next try; nothing else goes by it.
func (r *Registry) writeName(ctx context.Context, rdb redis.UniversalClient) {
	now := time.Now()
	pipe := rdb.Pipeline()
	pipe.ZAdd(ctx, nodesKey, redis.Z{Score: float64(now.Unix()), Member: r.cfg.Node})
	pipe.ZRemRangeByScore(ctx, nodesKey, "-inf", strconv.FormatInt(now.Add(-namesKept).Unix(), 10))
	if _, err := pipe.Exec(ctx); err != nil && r.ctx.Err() == nil {
		r.cfg.Log.Debug("this node's name could not be noted", zap.Error(err))
	}
}

// NamedNode is a node and its name.
type NamedNode struct {
	Name string
	Node
}

// Nodes are the nodes that live, in the order of their names.
func (r *Registry) Nodes(ctx context.Context) ([]NamedNode, error) {
	rdb, err := r.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return Nodes(ctx, rdb)
}

// Nodes is Registry.Nodes for who is no node.
func Nodes(ctx context.Context, rdb redis.UniversalClient) ([]NamedNode, error) {
	names, err := rdb.ZRevRange(ctx, nodesKey, 0, maxNodes-1).Result() // those seen last
	if err != nil {
		return nil, fmt.Errorf("read the names of nodes: %w", err)
	}
	slices.Sort(names)
	pipe := rdb.Pipeline()
	answers := make([]*redis.StringCmd, len(names))
	for i, name := range names {
		answers[i] = pipe.Get(ctx, nodeKeyPrefix+name)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("look up %d nodes: %w", len(names), err)
	}
	var nodes []NamedNode
	for i, a := range answers {
		value, err := a.Bytes()
		if errors.Is(err, redis.Nil) {
			continue // it has died
		}
		if err != nil {
			return nil, fmt.Errorf("look up node %s: %w", names[i], err)
		}
		n := NamedNode{Name: names[i]}
		if err := json.Unmarshal(value, &n.Node); err != nil {
			return nil, fmt.Errorf("node %s: %w", names[i], err)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// Lookup finds a living node; ErrNotConnected if it does not live.
func (r *Registry) Lookup(ctx context.Context, name string) (Node, error) {
	rdb, err := r.Client()
	if err != nil {
		return Node{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	value, err := rdb.Get(ctx, nodeKeyPrefix+name).Bytes()
	if errors.Is(err, redis.Nil) {
		return Node{}, ErrNotConnected
	}
	if err != nil {
		return Node{}, fmt.Errorf("look up node %s: %w", name, err)
	}
	var n Node
	if err := json.Unmarshal(value, &n); err != nil {
		return Node{}, fmt.Errorf("node %s: %w", name, err)
	}
	return n, nil
}

// Locate finds who has a device; ErrNotConnected if nobody has. Whether the node still lives
// is for Lookup to say.
func (r *Registry) Locate(ctx context.Context, id wire.ClientID) (Owner, error) {
	recs, err := r.Records(ctx, []wire.ClientID{id})
	if err != nil {
		return Owner{}, err
	}
	if recs[0].Owner.Node == "" {
		return Owner{}, ErrNotConnected
	}
	return recs[0].Owner, nil
}

// Records reads the records of some devices (a few hundred at most) in one round trip.
func (r *Registry) Records(ctx context.Context, ids []wire.ClientID) ([]Record, error) {
	rdb, err := r.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pipe := rdb.Pipeline()
	answers := make([]*redis.SliceCmd, len(ids))
	for i, id := range ids {
		answers[i] = pipe.HMGet(ctx, tokenKey(id), "owner", "epoch", "revoked", "gen")
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("read %d token records: %w", len(ids), err)
	}
	records := make([]Record, len(ids))
	for i, a := range answers {
		records[i] = parseRecord(a.Val())
	}
	return records, nil
}

func tokenKey(id wire.ClientID) string { return tokenKeyPrefix + "{" + id.String() + "}" }

func parseRecord(fields []any) Record {
	text := func(i int) string {
		if i >= len(fields) {
			return ""
		}
		s, _ := fields[i].(string)
		return s
	}
	var rec Record
	rec.Owner, _ = ParseOwner(text(0))
	rec.Owner.Epoch, _ = strconv.ParseInt(text(1), 10, 64) // 0 where there is none
	if text(2) != "" {
		rec.Revoked = knownCode(text(2))
	}
	for i := range fields {
		rec.Known = rec.Known || text(i) != ""
	}
	return rec
}
