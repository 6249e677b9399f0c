package redisdb

import (
	"fmt"
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
}

// StartEmbedded listens on addr ("127.0.0.1:0" for any port). Whoever started it closes it.
func StartEmbedded(addr string) (*Embedded, error) {
	e := &Embedded{mini: miniredis.NewMiniRedis()}
	if err := e.mini.StartAddr(addr); err != nil {
		return nil, err
	}
	e.addr = e.mini.Addr()
	e.mini.ClockTTL(true)
	if err := e.complete(); err != nil {
		e.mini.Close()
		return nil, err
	}
	return e, nil
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
func (e *Embedded) SetTime(t time.Time) { e.mini.SetTime(t) }

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
func (e *Embedded) Close() { e.mini.Close() }
