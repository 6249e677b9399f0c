package client

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// writeFrames writes what is queued, and heartbeats. It ends with the connection.
func (cn *conn) writeFrames() {
	interval := cn.welcome.Heartbeat
	if interval > 0 {
		interval = max(interval, minHeartbeat)
	}
	nextBeat := time.Now().Add(earlier(interval))
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var spare []byte
	for {
		if interval > 0 {
			now := time.Now()
			if !now.Before(nextBeat) {
				cn.beat(now)
				nextBeat = now.Add(earlier(interval))
			}
			wait, late := cn.untilLate(now)
			if late {
				cn.fail(errNoAck)
				return
			}
			timer.Reset(min(nextBeat.Sub(now), wait))
		}
		frames, bye := cn.take(spare)
		if len(frames) > 0 {
			if err := cn.write(frames); err != nil {
				cn.fail(err)
				return
			}
			if spare = frames[:0]; cap(spare) > keepBuffer {
				spare = nil
			}
			continue
		}
		if bye {
			_ = cn.transport.Close() // TLS says good-bye too
			cn.fail(ErrClosed)
			return
		}
		select {
		case <-cn.wake:
		case <-timer.C:
		case <-cn.ended:
			return
		}
	}
}

// earlier is up to a tenth less than the interval, so that devices which
// connected together do not beat together.
func earlier(interval time.Duration) time.Duration {
	return interval - rand.N(interval/10+1)
}

func (cn *conn) beat(now time.Time) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	token, gen := cn.client.creds.present()
	out, err := wire.Append(cn.out, cn.client.cfg.Version, &wire.Heartbeat{Token: token})
	if err != nil || cn.err != nil {
		return
	}
	cn.out = out
	cn.beats++
	if gen != cn.beatGen || cn.beats == 1 {
		cn.beatGen, cn.beatGenFrom = gen, cn.beats
	}
	if cn.waiting.IsZero() {
		cn.waiting = now
	}
}

// untilLate is how long an ack may still take; late: it has taken too long.
func (cn *conn) untilLate(now time.Time) (wait time.Duration, late bool) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.waiting.IsZero() {
		return ackTimeout, false
	}
	wait = cn.waiting.Add(ackTimeout).Sub(now)
	return wait, wait <= 0
}

// take gives the writer all that is queued, if anything is, and the queue spare in its
// place.
func (cn *conn) take(spare []byte) (frames []byte, bye bool) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.err != nil || len(cn.out) == 0 {
		return nil, cn.bye
	}
	frames, cn.out = cn.out, spare
	cn.taken = cn.queued
	return frames, cn.bye
}

func (cn *conn) write(frames []byte) error {
	_ = cn.raw.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := cn.transport.Write(frames); err != nil {
		if isTimeout(err) {
			return fmt.Errorf("%w: %w", errStalls, err)
		}
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
