package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

const (
	// lastsAfter is how long a connection has to live for the back-off to begin
	// anew after it. Where two balancers have a virtual address, and each announces it every ten seconds, of
	// two connections one lives for half of that.
	lastsAfter = 5 * time.Second
	// strayFor is how long after an attempt that got no answer taken_over may mean
	// that attempt of ours.
	strayFor = 30 * time.Second
	// maxPushes is how many pushes may wait for OnPush.
	maxPushes = 16
)

// run reads the connection, and makes the next one when it ends or is to be
// replaced. It ends after Close, and when another connection has taken over.
func (c *Client) run(cn *conn) {
	defer close(c.done)
	for cn != nil {
		err := cn.readFrames()
		if errors.Is(err, errGoaway) {
			c.tasks.Go(cn.finishReading) // ends with the connection
			cn = c.replace(cn)
		} else {
			cn = c.recoverFrom(cn, err)
		}
	}
}

// recoverFrom makes a new connection after one that has ended, nil if the client
// ends.
func (c *Client) recoverFrom(cn *conn, err error) *conn {
	c.setCurrent(nil, err)
	if c.Err() != nil {
		return nil
	}
	c.log.Info("connection ended", "session", cn.welcome.Session, "error", err)
	c.cfg.Hooks.disconnected(err)
	switch code := refusalCode(err); {
	case refusesToken(code):
		token, _ := c.creds.present()
		c.creds.refused(token, code)
	case code == wire.CodeTakenOver && !c.cfg.ReconnectTakenOver && time.Since(c.strayAt) > strayFor:
		c.end(err)
		return nil
	}
	if time.Since(cn.since) >= lastsAfter {
		c.backoff.reset()
	}
	next, err := c.connectAgain(c.ctx, err, nil)
	if err != nil {
		return nil
	}
	c.setCurrent(next, nil)
	return next
}

// replace makes a new connection while old goes on, nil if the client ends.
func (c *Client) replace(old *conn) *conn {
	wait := min(old.leaveAfter, maxRetryAfter)
	if time.Since(old.since) >= lastsAfter {
		c.backoff.reset()
	} else {
		wait += c.backoff.next(time.Now(), 0) // gateways that send the device to and fro must not make it spin
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-old.hurry:
	case <-old.ended:
		return c.recoverFrom(old, old.failure())
	case <-c.ctx.Done():
		return nil
	}
	cn, err := c.connect(c.ctx, old)
	if err != nil {
		cn, err = c.connectAgain(c.ctx, err, old)
	}
	if err != nil {
		return nil
	}
	c.setCurrent(cn, nil)
	old.retire()
	c.cfg.Hooks.disconnected(nil)
	return cn
}

// connectAgain goes on after a failure until there is a connection or ctx ends:
// the only error it returns.
func (c *Client) connectAgain(ctx context.Context, failure error, old *conn) (*conn, error) {
	for {
		c.setCurrent(c.stillServing(old), failure)
		timer := time.NewTimer(c.backoff.next(time.Now(), retryAfter(failure)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w: %w", failure, ctx.Err())
		}
		cn, err := c.connect(ctx, old)
		if err == nil {
			return cn, nil
		}
		if ctx.Err() == nil { // otherwise the attempt was cut short: the one before says more
			failure = err
		}
	}
}

// stillServing returns old if requests may go on there while the next connection
// cannot be had: not if a HELLO of ours got no answer, since that may have ended old.
func (c *Client) stillServing(old *conn) *conn {
	if old == nil || c.strayAt.After(old.since) {
		return nil
	}
	return old
}

// retryAfter is how long a gateway asked to wait.
func retryAfter(err error) time.Duration {
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// tokenAnswered notes that a frame with the token of that generation was accepted.
func (c *Client) tokenAnswered(gen uint64) {
	if err := c.creds.answered(gen); err != nil {
		c.log.Warn("token store", "error", err)
	}
}
