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
			probeIn := cn.untilProbe(now, interval)
			if !now.Before(nextBeat) || probeIn <= 0 {
				cn.beat(now)
				nextBeat = now.Add(earlier(interval))
				probeIn = interval
			}
			wait, why := cn.untilLate(now)
			if wait <= 0 {
				cn.fail(why)
				return
			}
			timer.Reset(min(nextBeat.Sub(now), probeIn, wait))
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

// untilProbe is how long what is awaited may still take before a heartbeat has to ask whether the connection
// lives, at most interval. A service may take long: who has waited and still heard something waits as long again.
func (cn *conn) untilProbe(now time.Time, interval time.Duration) time.Duration {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if !cn.awaits() || !cn.waiting.IsZero() {
		return interval
	}
	if !cn.heard.After(cn.asked) {
		return min(cn.asked.Add(probeAfter).Sub(now), interval)
	}
	return min(cn.heard.Add(max(probeAfter, cn.heard.Sub(cn.asked))).Sub(now), interval)
}

// awaits reports whether silence tells something: requests wait for answers, and the gateway reads, as it does not
// when there are as many as may be. A connection that was replaced is no longer needed. It is called with mu held.
func (cn *conn) awaits() bool {
	return len(cn.calls) > 0 && len(cn.calls) < cn.client.cfg.MaxInFlight && !cn.retired
}

// untilLate is how long the ack of a heartbeat may still take. If that is nothing, why says what was late.
func (cn *conn) untilLate(now time.Time) (wait time.Duration, why error) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.waiting.IsZero() {
		return ackTimeout, nil
	}
	wait = cn.waiting.Add(ackTimeout).Sub(now)
	if cn.awaits() {
		since := cn.waiting
		for _, t := range []time.Time{cn.heard, cn.asked} {
			if t.After(since) {
				since = t
			}
		}
		if silent := since.Add(probeTimeout).Sub(now); silent < wait {
			return silent, errSilent
		}
	}
	return wait, errNoAck
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
