package conformance

import (
	"errors"
	"fmt"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// How a session ends.

func courseRules() []rule {
	return []rule{
		{
			name: "takeover", demand: "a second connection of the device wins: the first is told taken_over, and closed",
			play: steps(enrolled, func(d *device) error {
				o := d.another(false)
				if err := o.open(d.token); err != nil {
					return err
				}
				if err := d.refused(d.cfg.AnswerTime, wire.CodeTakenOver); err != nil {
					return err
				}
				return goesOn(o)
			}),
		},
		{
			name: "bye", demand: "BYE ends the session without an ERROR; the token is good for another one",
			play: steps(enrolled, says(func(*device) wire.Message { return &wire.Bye{} }), closed, func(d *device) error { return resume(d, d.token) }),
		},
		{
			name: "goaway/serves", demand: "after GOAWAY the device is served as ever for after_ms",
			disturbs: true, play: steps(enrolled, sentAway, func(d *device) error {
				if time.Until(d.leaveAt) < time.Second {
					return cannotTry("GOAWAY gave the device no time")
				}
				return goesOn(d)
			}),
		},
		{
			name: "goaway/moves", demand: "after GOAWAY a new connection ends the first without an ERROR",
			disturbs: true, play: steps(enrolled, sentAway, func(d *device) error {
				o := d.another(false)
				if err := o.open(d.token); err != nil {
					return err
				}
				if err := d.ended(d.cfg.AnswerTime); err != nil {
					return err
				}
				return goesOn(o)
			}),
		},
		{
			name: "goaway/stays", demand: "a device that does not go is closed within 5 s of after_ms, requests meanwhile are shutting_down",
			disturbs: true, play: steps(enrolled, sentAway, stays),
		},
	}
}

// leaveTime is how much time Config.Shed is expected to give devices.
const leaveTime = 30 * time.Second

// sentAway is told GOAWAY.
func sentAway(d *device) error {
	if d.cfg.Shed == nil {
		return cannotTry("the kit was not told how to have devices sent away")
	}
	d.mayGo = true
	if err := d.cfg.Shed(d.ctx); err != nil {
		return cannotTry("devices cannot be sent away: %v", err)
	}
	var away wire.Goaway
	if err := d.next(&away); err != nil {
		return err
	}
	if away.Reason != "draining" && away.Reason != "rebalance" {
		return fmt.Errorf("its reason is %q", away.Reason)
	}
	d.leaveAt = time.Now().Add(away.After)
	return nil
}

// stays asks on when it should have left.
func stays(d *device) error {
	if left := time.Until(d.leaveAt); left > leaveTime {
		return cannotTry("GOAWAY gives it %v", left.Round(time.Second))
	}
	refused := false
	for {
		r := d.request("1")
		if err := d.send(r); err != nil {
			d.saw("closed")
			break // the gateway was quicker
		}
		f, err := d.read(d.cfg.AnswerTime)
		var over *hungUp
		if errors.As(err, &over) {
			d.saw("closed")
			break
		}
		if err != nil {
			return err
		}
		late := time.Since(d.leaveAt)
		switch f.Type {
		case wire.TypeResponse:
			if refused {
				return errors.New("a request was answered after one was refused")
			}
		case wire.TypeError:
			var e wire.Error
			if err := wire.Unmarshal(f.Version, f.Payload, &e); err != nil {
				return err
			}
			if e.Code != wire.CodeShuttingDown || !e.HasID || e.ID != r.ID || e.Close {
				return fmt.Errorf("got %s in place of shutting_down", describe(&e))
			}
			if !refused {
				d.saw("%s", describe(&e))
			}
			refused = true
		default:
			return fmt.Errorf("got %s", f.Type)
		}
		if late > 5*time.Second+slack {
			return fmt.Errorf("the connection is open %v after its time", late.Round(time.Second))
		}
		time.Sleep(50 * time.Millisecond)
	}
	if time.Now().Before(d.leaveAt.Add(-time.Second)) {
		return errors.New("it was closed before its time")
	}
	return nil
}
