package redisdb

import (
	"fmt"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
)

// Embedded is a Redis in this process, without replicas and without a disk, for
// `goshield up` and for tests. It listens on a TCP address like any other; keys
// expire by its clock, which is the machine's unless SetTime says otherwise.
// It is safe for concurrent use.
type Embedded struct {
	mini *miniredis.Miniredis
	addr string

	ended  chan struct{} // closed by Close
	close  func()        // what is done once
	expiry sync.WaitGroup

	mu      sync.Mutex
	stopped bool      // the clock, by SetTime
	aged    time.Time // up to when keys have aged
}

// Keys age by turns: miniredis can do it before each command, but goes through all keys for that, and would be busy with
// nothing else where there are thousands. So a key goes up to one turn early or late.
const (
	ageEvery  = 50 * time.Millisecond
	ageRarest = time.Second
	ageShare  = 20 // the more keys, the rarer are turns: they take a twentieth of the time at most
)

// StartEmbedded listens on addr ("127.0.0.1:0" for any port). Whoever started it closes it.
func StartEmbedded(addr string) (*Embedded, error) {
	e := &Embedded{mini: miniredis.NewMiniRedis(), ended: make(chan struct{}), aged: time.Now()}
	e.close = sync.OnceFunc(func() { close(e.ended) })
	if err := e.mini.StartAddr(addr); err != nil {
		return nil, err
	}
	e.addr = e.mini.Addr()
	if err := e.complete(); err != nil {
		e.mini.Close()
		return nil, err
	}
	e.expiry.Go(e.expire)
	return e, nil
}

// expire has keys age until Close.
func (e *Embedded) expire() {
	wait := ageEvery
	for {
		select {
		case <-e.ended:
			return
		case <-time.After(wait):
		}
		began := time.Now()
		e.age(began, false)
		wait = min(max(ageEvery, ageShare*time.Since(began)), ageRarest)
	}
}

// age brings all keys to a time: of a clock that is stopped there, or, unless it was stopped before, of one that runs.
func (e *Embedded) age(now time.Time, stop bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped && !stop {
		return
	}
	e.stopped = stop
	if d := now.Sub(e.aged); d > 0 {
		e.mini.FastForward(d)
	}
	e.aged = now
}

// complete adds what miniredis lacks and the services ask for.
func (e *Embedded) complete() error {
	if err := e.mini.Server().Register("ROLE", writeRole); err != nil {
		return fmt.Errorf("embedded redis: %w", err)
	}
	return nil
}

// writeRole answers ROLE: a primary without replicas.
func writeRole(c *server.Peer, _ string, _ []string) {
	c.WriteLen(3)
	c.WriteBulk("master")
	c.WriteInt(0)
	c.WriteLen(0)
}

// Addr is where it listens, also during an outage.
func (e *Embedded) Addr() string { return e.addr }

// Config connects to it.
func (e *Embedded) Config() Config {
	cfg := DefaultConfig()
	cfg.Addresses = []string{e.Addr()}
	cfg.Mode = ModeSingle
	return cfg
}

// SetTime stops its clock at t: for TIME, for stream ids, and for what expires. A later SetTime
// moves it; keys whose time has come are gone then.
func (e *Embedded) SetTime(t time.Time) {
	e.mini.SetTime(t)
	e.age(t, true)
}

// Stop closes its listener and every connection, and keeps the data: an outage.
func (e *Embedded) Stop() { e.mini.Close() }

// Resume ends an outage, on the same address.
func (e *Embedded) Resume() error {
	if err := e.mini.StartAddr(e.addr); err != nil {
		return err
	}
	return e.complete()
}

// Close ends it; its data is gone.
func (e *Embedded) Close() {
	e.close()
	e.expiry.Wait()
	e.mini.Close()
}
