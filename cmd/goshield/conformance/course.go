package conformance

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// The course of an open session: requests, tokens, silences, and how it ends.

const (
	// beatsForToken is how many heartbeats are sent for a new token.
	beatsForToken = 400
	// floodSize is how many requests are sent at once to find the device's limit.
	floodSize = 2000
	// duplicateTries is how often two requests of one id are sent until the second comes before the answer to the
	// first.
	duplicateTries = 50
)

func requestRules() []rule {
	return []rule{
		{
			name: "request/echo", demand: "REQUEST is answered under its id, the lowest and highest ids too",
			play: steps(enrolled, func(d *device) error {
				for _, id := range []uint32{0, 1, math.MaxUint32} {
					r := d.request(`{"n":1}`)
					r.ID = id
					if err := d.exchange(r); err != nil {
						return err
					}
				}
				return nil
			}),
		},
		{
			name: "request/many", demand: "requests may be in flight at once, each is answered once",
			play: steps(enrolled, manyAtOnce, goesOn),
		},
		{
			name: "request/id-in-flight", demand: "an id that is in flight already is bad_frame",
			play: steps(enrolled, duplicateID),
		},
		{
			name: "request/id-again", demand: "an id may be used again when it was answered",
			play: steps(enrolled, func(d *device) error {
				for range 3 {
					r := d.request("1")
					r.ID = 5
					if err := d.exchange(r); err != nil {
						return err
					}
				}
				return nil
			}),
		},
		{
			name: "request/no-such-service", demand: "an unknown service is no_such_service, for that request only",
			play: steps(enrolled, func(d *device) error {
				r := d.request("1")
				r.Service = "goshield-conformance-none"
				if err := d.send(r); err != nil {
					return err
				}
				_, err := d.answeredWith(r.ID, wire.CodeNoSuchService)
				return err
			}, goesOn),
		},
		{
			name: "request/rate-limit", demand: "over its limit a device is told rate_limited and when to come again; then it is served",
			play: steps(enrolled, overTheLimit),
		},
		{
			name: "push/ack", demand: "PUSH brings service and body under an id of its own, and PUSH_ACK answers it",
			play: steps(enrolled, pushed, goesOn),
		},
		{
			name: "push/stray-ack", demand: "PUSH_ACK that answers no PUSH changes nothing",
			play: steps(enrolled, says(func(*device) wire.Message { return &wire.PushAck{ID: 12345} }), goesOn),
		},
	}
}

func manyAtOnce(d *device) error {
	const n = 16
	open := make(map[uint32]string, n)
	for range n {
		r := d.request(fmt.Sprintf(`{"n":%d}`, d.lastID))
		open[r.ID] = string(r.Body)
		if err := d.send(r); err != nil {
			return err
		}
	}
	for range n {
		var resp wire.Response
		if err := d.next(&resp); err != nil {
			return err
		}
		if body, ok := open[resp.ID]; !ok || body != string(resp.Body) {
			return fmt.Errorf("request %d was answered with %.40q, want %q once", resp.ID, resp.Body, body)
		}
		delete(open, resp.ID)
	}
	d.remarks = []string{fmt.Sprintf("%d answers", n)}
	return nil
}

// duplicateID sends two requests of one id in one piece: the second comes while the first is in flight,
// unless the backend was quicker.
func duplicateID(d *device) error {
	for range duplicateTries {
		r := d.request("1")
		frame, err := d.frame(r)
		if err != nil {
			return err
		}
		if d.way.websocket {
			err = errors.Join(d.sendRaw(frame), d.sendRaw(frame))
		} else {
			err = d.sendRaw(append(frame[:len(frame):len(frame)], frame...))
		}
		if err != nil {
			return err
		}
		f, err := d.read(d.cfg.AnswerTime)
		if err != nil {
			return err
		}
		if f.Type == wire.TypeResponse { // of the first: was the second one late?
			if f, err = d.read(d.cfg.AnswerTime); err != nil {
				return err
			}
		}
		if f.Type == wire.TypeResponse {
			continue
		}
		var e wire.Error
		if f.Type != wire.TypeError || wire.Unmarshal(f.Version, f.Payload, &e) != nil {
			return fmt.Errorf("got %s", f.Type)
		}
		d.saw("%s", describe(&e))
		if e.Code != wire.CodeBadFrame || !e.Close {
			return errors.New("want bad_frame, and close")
		}
		return d.ended(d.cfg.AnswerTime)
	}
	return cannotTry("the backend answers before the second frame is read")
}

// overTheLimit sends more than a device may, and waits as it is told.
func overTheLimit(d *device) error {
	frames := []byte(nil)
	for range floodSize {
		frame, err := d.frame(d.request("1"))
		if err != nil {
			return err
		}
		frames = append(frames, frame...)
	}
	sent := make(chan error, 1)
	go func() { sent <- d.flood(frames) }() // ends when the gateway has taken them, or with the connection
	answers, refusals := 0, 0
	var wait time.Duration
	for range floodSize {
		f, err := d.read(d.cfg.AnswerTime)
		if err != nil {
			return fmt.Errorf("after %d answers and %d refusals: %w", answers, refusals, err)
		}
		switch f.Type {
		case wire.TypeResponse:
			answers++
			continue
		case wire.TypeError:
		default:
			return fmt.Errorf("got %s", f.Type)
		}
		var e wire.Error
		if err := wire.Unmarshal(f.Version, f.Payload, &e); err != nil {
			return err
		}
		switch {
		case e.Code != wire.CodeRateLimited:
			return fmt.Errorf("got ERROR %w", &e)
		case !e.HasID || e.Close || e.RetryAfter <= 0:
			return fmt.Errorf("ERROR rate_limited of a request, with a time and without close, is wanted; got %s, retry_after_ms %d", describe(&e), e.RetryAfter.Milliseconds())
		}
		refusals++
		wait = e.RetryAfter
	}
	if err := <-sent; err != nil {
		return err
	}
	if refusals == 0 {
		return cannotTry("%d requests at once were all answered", floodSize)
	}
	d.saw("%d answers and %d times rate_limited, come again after %v", answers, refusals, wait)
	// Each refusal has its price, too: the last word on the time counts.
	for range 3 {
		if err := d.pause(wait); err != nil {
			return err
		}
		r := d.request("1")
		if err := d.send(r); err != nil {
			return err
		}
		f, err := d.read(d.cfg.AnswerTime)
		if err != nil {
			return err
		}
		if f.Type == wire.TypeResponse {
			return nil
		}
		var e wire.Error
		if wire.Unmarshal(f.Version, f.Payload, &e) != nil || e.Code != wire.CodeRateLimited {
			return fmt.Errorf("got %s", f.Type)
		}
		wait = e.RetryAfter
	}
	return errors.New("it waited as long as it was told three times, and was refused again")
}

// flood writes frames, each a message of its own over WebSocket.
func (d *device) flood(frames []byte) error {
	_ = d.conn.SetWriteDeadline(time.Now().Add(2 * d.cfg.AnswerTime))
	if !d.way.websocket {
		_, err := d.conn.Write(frames)
		return err
	}
	for len(frames) > 0 {
		h, err := wire.ParseHeader(frames, wire.MaxPayload)
		if err != nil {
			return err
		}
		n := wire.HeaderSize + int(h.Length)
		if _, err := d.conn.Write(frames[:n]); err != nil {
			return err
		}
		frames = frames[n:]
	}
	return nil
}

// pushed asks a service for two pushes, and acknowledges them.
func pushed(d *device) error {
	if d.cfg.PushService == "" {
		return cannotTry("there is no service that pushes")
	}
	ids := make(map[uint32]bool)
	for i := range 2 {
		body := fmt.Sprintf(`{"n":%d}`, i)
		r := d.request(`{"body":` + body + `}`)
		r.Service = d.cfg.PushService
		if err := d.send(r); err != nil {
			return err
		}
		var push wire.Push
		for answered := false; !answered || push.Service == ""; {
			f, err := d.read(d.cfg.AnswerTime)
			if err != nil {
				return err
			}
			switch f.Type {
			case wire.TypeResponse:
				answered = true
			case wire.TypePush:
				err = wire.Unmarshal(f.Version, append([]byte(nil), f.Payload...), &push)
			case wire.TypeError:
				var e wire.Error
				if wire.Unmarshal(f.Version, f.Payload, &e) == nil && e.Code == wire.CodeNoSuchService {
					return cannotTry("there is no service %q that pushes", d.cfg.PushService)
				}
				err = fmt.Errorf("got ERROR %w", &e)
			default:
				err = fmt.Errorf("got %s", f.Type)
			}
			if err != nil {
				return err
			}
		}
		if string(push.Body) != body || ids[push.ID] {
			return fmt.Errorf("got PUSH %d %.60q, want %q under an id of its own", push.ID, push.Body, body)
		}
		ids[push.ID] = true
		d.saw("PUSH %d of %s", push.ID, push.Service)
		if err := d.send(&wire.PushAck{ID: push.ID}); err != nil {
			return err
		}
	}
	return nil
}

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
				old := d.token
				next, err := d.nextToken()
				if err != nil {
					return err
				}
				d.token = next
				if err := goesOn(d); err != nil {
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

// replay uses the new token, and presents the one before until its grace is over.
func replay(d *device) error {
	old := d.token
	next, err := d.nextToken()
	if err != nil {
		return err
	}
	d.token = next
	if err := goesOn(d); err != nil {
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
		var e wire.Error
		if f.Type != wire.TypeError || wire.Unmarshal(f.Version, f.Payload, &e) != nil {
			return fmt.Errorf("got %s", f.Type)
		}
		d.saw("%s", describe(&e))
		if e.Code != wire.CodeTokenReused || !e.Close {
			return errors.New("want token_reused, and close")
		}
		if err := d.ended(d.cfg.AnswerTime); err != nil {
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
