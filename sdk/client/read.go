package client

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// readFrames handles what the gateway sends until the connection ends, which is
// the error it returns, or until the gateway asks to go for the first time: errGoaway.
func (cn *conn) readFrames() error {
	for {
		f, err := cn.reader.Next()
		if err != nil {
			err = readError(err)
		} else {
			err = cn.handle(f)
		}
		if errors.Is(err, errGoaway) {
			return err
		}
		if err != nil {
			cn.fail(err)
			return cn.failure()
		}
	}
}

// finishReading reads a connection that is being replaced, until it ends.
func (cn *conn) finishReading() {
	for {
		if err := cn.readFrames(); !errors.Is(err, errGoaway) {
			cn.client.log.Debug("connection replaced", "session", cn.welcome.Session, "end", err)
			return
		}
	}
}

// handle obeys one frame. An error ends the connection, but for errGoaway.
func (cn *conn) handle(f wire.Frame) error {
	switch f.Type {
	case wire.TypeResponse:
		var m wire.Response
		if err := cn.decode(f, &m); err != nil {
			return err
		}
		if !cn.answer(m.ID, reply{body: bytes.Clone(m.Body)}) {
			return fmt.Errorf("%w: an answer to request %d, which there is not", ErrProtocol, m.ID)
		}
		return nil
	case wire.TypeHeartbeatAck:
		var m wire.HeartbeatAck
		if err := cn.decode(f, &m); err != nil {
			return err
		}
		cn.acknowledged(&m)
		return nil
	case wire.TypePush:
		var m wire.Push
		if err := cn.decode(f, &m); err != nil {
			return err
		}
		cn.client.pushed(cn, &m)
		return nil
	case wire.TypeError:
		return cn.refused(f)
	case wire.TypeGoaway:
		var m wire.Goaway
		if err := cn.decode(f, &m); err != nil {
			return err
		}
		if cn.leaving {
			return nil
		}
		cn.client.log.Info("gateway asks to go", "reason", m.Reason, "after", m.After)
		cn.leaving, cn.leaveAfter = true, m.After
		return errGoaway
	}
	return fmt.Errorf("%w: %s after WELCOME", ErrProtocol, f.Type)
}

// refused obeys an ERROR.
func (cn *conn) refused(f wire.Frame) error {
	e := new(wire.Error)
	if err := cn.decode(f, e); err != nil {
		return err
	}
	cn.client.cfg.Hooks.errored(e)
	if e.Code == wire.CodeShuttingDown && e.HasID && !e.Close {
		// The request was not taken: it waits for the next connection.
		cn.refuse()
		cn.answer(e.ID, reply{err: errNotTaken})
		if cn.leaving {
			return nil
		}
		cn.leaving = true
		return errGoaway
	}
	if e.HasID {
		cn.answer(e.ID, reply{err: e})
	}
	if e.Close {
		return e
	}
	return nil
}

// acknowledged notes a heartbeat's ack, and the new token that it may bring.
func (cn *conn) acknowledged(m *wire.HeartbeatAck) {
	cn.mu.Lock()
	cn.acks = min(cn.acks+1, cn.beats)
	cn.waiting = time.Time{}
	gen, answered := cn.beatGen, cn.beats > 0 && cn.acks >= cn.beatGenFrom
	cn.mu.Unlock()
	c := cn.client
	if answered {
		c.tokenAnswered(gen)
	}
	// Not from a connection that is being replaced: the HELLO of the next one may be on its way
	// with the token we have, and must not find itself outdated.
	if m.Token.IsZero() || cn.leaving {
		return
	}
	isNew, err := c.creds.rotate(m.Token, m.ExpiresAt)
	switch {
	case err != nil: // the gateway offers it again in the next ack
		c.log.Warn("token store", "error", err)
	case isNew:
		c.log.Debug("token rotated", "session", cn.welcome.Session)
		c.cfg.Hooks.rotated()
	}
}

// delivery is a push that waits for OnPush.
type delivery struct {
	from *conn
	id   uint32
	push Push
}

// pushed hands a push over, or drops it: its service then learns that nobody
// acknowledged it.
func (c *Client) pushed(cn *conn, m *wire.Push) {
	if c.pushes == nil {
		return
	}
	select {
	case c.pushes <- delivery{from: cn, id: m.ID, push: Push{Service: m.Service, Body: bytes.Clone(m.Body)}}:
	default:
		c.log.Warn("push dropped: too many wait for OnPush", "service", m.Service)
	}
}

// deliverPushes calls OnPush. It ends with Close.
func (c *Client) deliverPushes() {
	for {
		select {
		case d := <-c.pushes:
			c.cfg.OnPush(d.push)
			d.from.enqueue(&wire.PushAck{ID: d.id})
		case <-c.ctx.Done():
			return
		}
	}
}
