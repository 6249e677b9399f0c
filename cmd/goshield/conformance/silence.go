package conformance

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Silences, and what ends them.

func silenceRules() []rule {
	return []rule{
		{
			name: "silence/frame", demand: "a frame must be complete 10 s after its first byte: idle_timeout",
			slow: true, tcp: true, play: steps(enrolled, func(d *device) error {
				if d.cfg.Patience < 10*time.Second {
					return cannotTry("it takes 10 s")
				}
				if d.welcome.IdleTimeout <= 10*time.Second {
					return cannotTry("the idle timeout comes first")
				}
				if err := d.sendRaw([]byte{d.way.version, byte(wire.TypeRequest), 0, 100, '{'}); err != nil {
					return err
				}
				if err := d.refused(10*time.Second+slack, wire.CodeIdleTimeout, wire.CodeHeartbeatTimeout); err != nil {
					return err
				}
				if !strings.Contains(d.seen(), string(wire.CodeIdleTimeout)) {
					return cannotTry("heartbeats run out within 10 s")
				}
				return nil
			}),
		},
		{
			name: "silence/idle", demand: "a device without a frame for idle_timeout_ms is told so, or that its heartbeats ran out, and closed",
			slow: true, play: steps(enrolled, func(d *device) error {
				if err := d.patientFor(d.welcome.IdleTimeout); err != nil {
					return err
				}
				return d.refused(d.welcome.IdleTimeout+slack, wire.CodeIdleTimeout, wire.CodeHeartbeatTimeout)
			}),
		},
		{
			name: "silence/heartbeat", demand: "only HEARTBEAT puts off the heartbeat deadline: heartbeat_timeout while requests go on",
			slow: true, play: steps(enrolled, func(d *device) error {
				interval := d.welcome.Heartbeat
				if interval == 0 {
					return cannotTry("the gateway wants no heartbeats")
				}
				if err := d.patientFor(interval); err != nil {
					return err
				}
				rest := min(interval/2, d.welcome.IdleTimeout/3)
				for begun := d.sentAt; time.Since(begun) < d.cfg.Patience; time.Sleep(rest) {
					err := d.ask("1")
					var e *wire.Error
					if errors.As(err, &e) && e.Code == wire.CodeHeartbeatTimeout {
						d.saw("ERROR %s", e.Code)
						if took := time.Since(begun); took < interval {
							return fmt.Errorf("it came after %v, the interval is %v", took, interval)
						}
						return d.ended(d.cfg.AnswerTime)
					}
					if err != nil {
						return err
					}
				}
				return cannotTry("no heartbeat_timeout within %v", d.cfg.Patience)
			}),
		},
		{
			name: "silence/heartbeats-keep", demand: "heartbeats alone keep a connection beyond the idle timeout",
			slow: true, play: steps(enrolled, func(d *device) error {
				if d.welcome.Heartbeat == 0 || d.welcome.Heartbeat >= d.welcome.IdleTimeout {
					return cannotTry("heartbeats are too rare for that")
				}
				length := d.welcome.IdleTimeout * 5 / 4
				if err := d.patientFor(length); err != nil {
					return err
				}
				for begun := time.Now(); time.Since(begun) < length; time.Sleep(d.welcome.Heartbeat / 2) {
					ack, err := d.beat(d.token)
					if err != nil {
						return err
					}
					if !ack.Token.IsZero() {
						d.token = ack.Token
					}
				}
				return goesOn(d)
			}),
		},
	}
}

// patientFor is an error if a silence of that length is not worth waiting for.
func (d *device) patientFor(silence time.Duration) error {
	if silence > d.cfg.Patience {
		return cannotTry("it takes %v, and patience is %v", silence, d.cfg.Patience)
	}
	return nil
}
