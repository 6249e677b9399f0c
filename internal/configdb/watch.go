package configdb

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/dynamic"
)

const (
	// pollEvery is what holds without Pub/Sub: a change is in force a poll and a call later.
	pollEvery   = time.Second
	callTimeout = 800 * time.Millisecond
	// earlyPolls come sooner, so that a process that starts with Redis does not serve by its defaults first.
	earlyPolls = 20
	earlyEvery = 50 * time.Millisecond
	// shareEvery is how often defaults are told while there is no document.
	shareEvery = shared / 4
)

// WatchConfig is what a Watcher needs.
type WatchConfig struct {
	// Redis is the client, or an error while there is none. It may answer another one later.
	Redis func() (redis.UniversalClient, error)
	// Defaults are in force while Redis has no document.
	Defaults dynamic.Document
	// ShareDefaults: tell them to Redis meanwhile, so that "goshield config" shows them and starts from them.
	ShareDefaults bool
	// Apply puts a valid document in force. An error, best a *config.Error, leaves the one before in force. Version 0 are
	// the defaults; it is not called for them at the start.
	Apply func(doc dynamic.Document, version int64) error
	// Refused hears of a document that could not be put in force, once.
	Refused func()
	Log     *zap.Logger
}

// Watcher follows the document: announced by Pub/Sub, which promises nothing, and looked at each second. While Redis is
// away, what is in force stays.
type Watcher struct {
	cfg     WatchConfig
	name    string // of the document
	settled chan struct{}
	once    sync.Once

	// Owned by Run.
	store    *Store
	rdb      redis.UniversalClient // store's
	sub      *redis.PubSub         // nil: there is no client yet
	seen     string                // stamp of the document that was applied or refused; empty: none was met
	inForce  int64                 // version
	sharedAt time.Time
}

// NewWatcher makes a watcher; Run makes it work.
func NewWatcher(cfg WatchConfig) *Watcher { return newWatcher(cfg, "goshield:config") }

func newWatcher(cfg WatchConfig, name string) *Watcher {
	return &Watcher{cfg: cfg, name: name, settled: make(chan struct{})}
}

// Settled is closed when Redis was asked for the first time, and what it had is in force.
func (w *Watcher) Settled() <-chan struct{} { return w.settled }

// Run follows the document until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	defer w.unsubscribe()
	for polls := 0; ; polls++ {
		err := w.look(ctx)
		if err == nil {
			w.once.Do(func() { close(w.settled) })
		}
		wait := pollEvery
		if err != nil && polls < earlyPolls {
			wait = earlyEvery
		}
		if !w.pause(ctx, wait) {
			return
		}
	}
}

// pause waits for an announcement, or so long; false: ctx has ended.
func (w *Watcher) pause(ctx context.Context, d time.Duration) bool {
	var announced <-chan *redis.Message
	if w.sub != nil {
		announced = w.sub.Channel()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-announced:
	}
	return ctx.Err() == nil
}

// look asks Redis once. An error tells that it could not be asked.
func (w *Watcher) look(ctx context.Context) error {
	rdb, err := w.cfg.Redis()
	if err != nil {
		return err
	}
	if rdb != w.rdb {
		w.unsubscribe()
		w.rdb, w.store = rdb, newStore(rdb, w.name)
		w.sub = rdb.Subscribe(ctx, w.name) // it connects again by itself
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stamp, err := w.store.stamp(ctx)
	switch {
	case err != nil:
		return err
	case stamp == "":
		w.none(ctx)
	case stamp != w.seen:
		return w.changed(ctx, stamp)
	}
	return nil
}

func (w *Watcher) unsubscribe() {
	if w.sub != nil {
		_ = w.sub.Close() // nobody listens any more
		w.sub = nil
	}
}

// changed puts a document in force that was not seen before.
func (w *Watcher) changed(ctx context.Context, stamp string) error {
	e, err := w.store.Current(ctx)
	switch {
	case errors.Is(err, ErrNone):
		return nil // removed just now: the next look sees to it
	case err == nil:
		err = w.apply(e)
	case !errors.Is(err, errMalformed):
		return err
	}
	// Whatever came of it, this one is not tried again. Should it have been replaced between the two reads, the
	// newer one is applied twice.
	w.seen = stamp
	if err != nil {
		w.cfg.Log.Error("the dynamic document in Redis cannot be used; the one before stays in force",
			zap.Int64("version", e.Version), zap.Int64("in_force", w.inForce), zap.Error(err))
		w.cfg.Refused()
	}
	return nil
}

func (w *Watcher) apply(e Entry) error {
	doc, err := e.Document()
	if err != nil {
		return err
	}
	if err := w.cfg.Apply(doc, e.Version); err != nil {
		return err
	}
	w.inForce = e.Version
	w.cfg.Log.Info("a dynamic document is in force", zap.Int64("version", e.Version), zap.String("by", e.By))
	return nil
}

// none goes back to the defaults if there was a document before, and tells them.
func (w *Watcher) none(ctx context.Context) {
	if w.seen != "" {
		w.seen = ""
		w.cfg.Log.Warn("the dynamic document has gone from Redis: the defaults are in force", zap.Int64("was", w.inForce))
		if err := w.cfg.Apply(w.cfg.Defaults, 0); err != nil {
			w.cfg.Log.Error("the defaults cannot be used", zap.Error(err))
			w.cfg.Refused()
		}
		w.inForce = 0
	}
	if !w.cfg.ShareDefaults || time.Since(w.sharedAt) < shareEvery {
		return
	}
	text, err := json.Marshal(w.cfg.Defaults)
	if err == nil {
		err = w.store.shareDefaults(ctx, text)
	}
	if err != nil {
		w.cfg.Log.Debug("the defaults could not be told to Redis", zap.Error(err))
		return
	}
	w.sharedAt = time.Now()
}
