package conformance

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Requests and pushes of an open session.

const (
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
		return d.refusedBy(f, wire.CodeBadFrame)
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
