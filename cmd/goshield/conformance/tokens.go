package conformance

import (
	"errors"
	"fmt"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Tokens of an open session, and the heartbeats that change them.

// beatsForToken is how many heartbeats are sent for a new token.
const beatsForToken = 400

func tokenRules() []rule {
	random := wire.Token{0x0b, 0xa7, 0xb8, 0x10, 0x9d, 0xad, 0x41, 0xd1, 0x80, 0xb4, 0, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}
	// carriers are the frames that carry a token.
	carriers := []func(d *device, t wire.Token) wire.Message{
		func(d *device, t wire.Token) wire.Message {
			r := d.request("1")
			r.Token = t
			return r
		},
		func(_ *device, t wire.Token) wire.Message { return &wire.Heartbeat{Token: t} },
	}
	withToken := func(token func(d *device) wire.Token, code wire.Code) step {
		return each([]int{0, 1}, func(d *device, i int) error {
			return steps(enrolled, func(d *device) error { return d.send(carriers[i](d, token(d))) }, refusedAs(code))(d)
		})
	}
	return []rule{
		{
			name: "token/missing", demand: "REQUEST and HEARTBEAT without a token are auth_required",
			play: withToken(func(*device) wire.Token { return wire.Token{} }, wire.CodeAuthRequired),
		},
		{
			name: "token/wrong", demand: "REQUEST and HEARTBEAT with a token that nobody has are bad_token",
			play: withToken(func(*device) wire.Token { return random }, wire.CodeBadToken),
		},
		{
			name: "token/foreign", demand: "REQUEST with another device's token is bad_token",
			play: steps(enrolled, func(d *device) error {
				o := d.another(true)
				if err := o.open(wire.Token{}); err != nil {
					return err
				}
				r := d.request("1")
				r.Token = o.token
				if err := d.send(r); err != nil {
					return err
				}
				if err := d.refused(d.cfg.AnswerTime, wire.CodeBadToken); err != nil {
					return err
				}
				return goesOn(o)
			}),
		},
		{
			name: "token/resume-wrong", demand: "HELLO with a wrong token is bad_token, and changes nothing",
			play: steps(enrolled, func(d *device) error {
				o := d.another(false)
				if err := o.openRefused(random, wire.CodeBadToken); err != nil {
					return err
				}
				d.remarks = o.remarks
				return goesOn(d)
			}),
		},
		{
			name: "token/enrol-again", demand: "enrolment replaces the record: the token before is bad_token",
			play: steps(enrolled, func(d *device) error {
				o, p := d.another(false), d.another(false)
				if err := o.open(wire.Token{}); err != nil {
					return err
				}
				if o.token == d.token {
					return errors.New("the new token is the old one")
				}
				err := p.openRefused(d.token, wire.CodeBadToken)
				d.remarks = p.remarks
				return err
			}),
		},
		{
			name: "heartbeat/ack", demand: "HEARTBEAT is answered, with token and expires_at, or neither",
			play: steps(enrolled, func(d *device) error {
				for range 3 {
					if _, err := d.beat(d.token); err != nil {
						return err
					}
				}
				return nil
			}),
		},
		{
			name: "rotation/repeat", demand: "a new token comes in every ack until it is used; the current one stays good",
			play: steps(enrolled, func(d *device) error {
				next, err := d.nextToken()
				if err != nil {
					return err
				}
				for range 3 {
					ack, err := d.beat(d.token)
					if err != nil {
						return err
					}
					if ack.Token != next {
						return errors.New("the ack does not repeat the token")
					}
				}
				return goesOn(d)
			}),
		},
		{
			name: "rotation/use", demand: "the new token is good at once, and from then on the current one",
			play: steps(enrolled, func(d *device) error {
				next, err := d.nextToken()
				if err != nil {
					return err
				}
				d.token = next
				if err := goesOn(d); err != nil {
					return err
				}
				return resume(d, next)
			}),
		},
		{
			name: "rotation/lost-ack", demand: "a device that lost the new token resumes with the one before",
			play: steps(enrolled, func(d *device) error {
				if _, err := d.nextToken(); err != nil {
					return err
				}
				return resume(d, d.token)
			}),
		},
		{
			name: "rotation/grace", demand: "the token before goes on for its grace; HELLO with it is given a fresh one",
			play: steps(enrolled, func(d *device) error {
				old, next, err := d.moveOn()
				if err != nil {
					return err
				}
				o := d.another(false)
				err = o.open(old)
				d.remarks = o.remarks
				var refusal *wire.Error
				switch {
				case errors.As(err, &refusal) && refusal.Code == wire.CodeTokenReused:
					return cannotTry("the token before had no grace left")
				case err != nil:
					return err
				case o.token == old || o.token == next:
					return errors.New("WELCOME brings no fresh token")
				}
				return goesOn(o)
			}),
		},
		{
			name: "rotation/reuse", demand: "a replaced token, replayed after its grace, is token_reused: it revokes, and closes every connection",
			slow: true, play: steps(enrolled, replay),
		},
	}
}

// nextToken sends heartbeats until an ack brings a new token.
func (d *device) nextToken() (wire.Token, error) {
	if d.welcome.Heartbeat == 0 {
		return wire.Token{}, cannotTry("the gateway wants no heartbeats")
	}
	start := time.Now()
	for range beatsForToken {
		ack, err := d.beat(d.token)
		if err != nil {
			var e *wire.Error
			if errors.As(err, &e) && e.Code == wire.CodeRateLimited && !e.Close {
				if err := d.pause(e.RetryAfter); err != nil {
					return wire.Token{}, err
				}
				continue
			}
			return wire.Token{}, err
		}
		if !ack.Token.IsZero() {
			if ack.Token == d.token {
				return ack.Token, errors.New("the new token is the current one")
			}
			return ack.Token, nil
		}
		if time.Since(start) > d.cfg.Patience {
			break
		}
	}
	return wire.Token{}, cannotTry("no heartbeat brought a new token")
}

// moveOn gets the device a new token and goes on with it.
func (d *device) moveOn() (old, next wire.Token, err error) {
	old = d.token
	if next, err = d.nextToken(); err != nil {
		return old, next, err
	}
	d.token = next
	return old, next, goesOn(d)
}

// replay uses the new token, and presents the one before until its grace is over.
func replay(d *device) error {
	old, next, err := d.moveOn()
	if err != nil {
		return err
	}
	for start := time.Now(); ; {
		if time.Since(start) > d.cfg.Patience {
			return cannotTry("the token before was good for longer than %v", d.cfg.Patience)
		}
		if err := d.send(&wire.Heartbeat{Token: old}); err != nil {
			return err
		}
		f, err := d.read(d.cfg.AnswerTime)
		if err != nil {
			return err
		}
		if f.Type == wire.TypeHeartbeatAck {
			if err := d.pause(100 * time.Millisecond); err != nil {
				return err
			}
			continue
		}
		if err := d.refusedBy(f, wire.CodeTokenReused); err != nil {
			return err
		}
		o := d.another(false)
		if err := o.openRefused(next, wire.CodeRevoked, wire.CodeTokenReused); err != nil {
			return fmt.Errorf("the current token after that: %w", err)
		}
		d.remarks = append(d.remarks[:len(d.remarks)-1], o.remarks[0])
		return nil
	}
}
