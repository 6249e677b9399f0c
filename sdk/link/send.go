package link

import (
	"encoding/binary"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// The methods below send one frame each. They never block, Respond and Fail
// excepted: a frame is queued whole, or refused with ErrBackpressure (the link goes
// on) or ErrClosed. One whose payload is over the negotiated limit is refused with a
// *wire.Error, frame_too_large. What they are given is copied before they
// return.

// Request sends a REQUEST, from the gateway's end. The service's name must have
// from 1 to MaxServiceName bytes.
func (c *Conn) Request(stream uint64, r *Request) error {
	if err := c.admit(TypeRequest, r.size(), 0, false); err != nil {
		return err
	}
	c.out.buf = AppendRequest(c.out.buf, stream, r)
	c.out.commit()
	return nil
}

// Cancel says that nobody waits for the answer to stream any more. A REQUEST of it that is not written yet is not going to be.
func (c *Conn) Cancel(stream uint64) error {
	if err := c.admit(TypeCancel, 0, controlReserve, false); err != nil {
		return err
	}
	c.out.buf = AppendCancel(c.out.buf, stream)
	c.out.cancelled = append(c.out.cancelled, stream)
	c.out.commit()
	return nil
}

// Respond answers a REQUEST, from the backend's end. It waits for room in the
// queue: at most WriteTimeout, after which the link ends.
func (c *Conn) Respond(stream uint64, body []byte) error {
	if err := c.admit(TypeResponse, len(body), 0, true); err != nil {
		return err
	}
	c.out.buf = AppendResponse(c.out.buf, stream, body)
	c.out.commit()
	return nil
}

// maxMessage bounds the message of an ERROR, in bytes.
const maxMessage = MinFrame / 2

// Fail answers a REQUEST with an ERROR; a long message is cut. It waits as Respond does.
func (c *Conn) Fail(stream uint64, code wire.Code, message string) error {
	message = message[:min(len(message), maxMessage)]
	if err := c.admit(TypeError, len(code)+1+len(message), 0, true); err != nil {
		return err
	}
	c.out.buf = AppendError(c.out.buf, stream, code, message)
	c.out.commit()
	return nil
}

// Refuse answers a REQUEST with an ERROR from where waiting is not possible: Serve's
// handler. With ErrBackpressure the link had better end: a peer that sends more
// than was agreed must at least read the refusals.
func (c *Conn) Refuse(stream uint64, code wire.Code, message string) error {
	message = message[:min(len(message), maxMessage)]
	if err := c.admit(TypeError, len(code)+1+len(message), controlReserve, false); err != nil {
		return err
	}
	c.out.buf = AppendError(c.out.buf, stream, code, message)
	c.out.commit()
	return nil
}

// Push sends a PUSH, from the backend's end. The service's name must have from 1 to
// MaxServiceName bytes.
func (c *Conn) Push(stream uint64, p *Push) error {
	if err := c.admit(TypePush, p.size(), 0, false); err != nil {
		return err
	}
	c.out.buf = AppendPush(c.out.buf, stream, p)
	c.out.commit()
	return nil
}

// PushResult answers a PUSH, from the gateway's end.
func (c *Conn) PushResult(stream uint64, r PushResult) error {
	if err := c.admit(TypePushResult, 1, controlReserve, false); err != nil {
		return err
	}
	c.out.buf = AppendPushResult(c.out.buf, stream, r)
	c.out.commit()
	return nil
}

// Goaway asks the peer to open no new streams on this link.
func (c *Conn) Goaway() error {
	if err := c.admit(TypeGoaway, 0, controlReserve, false); err != nil {
		return err
	}
	c.out.buf = AppendGoaway(c.out.buf)
	c.out.commit()
	return nil
}

// ping sends a PING with the time, which tells nobody anything.
func (c *Conn) ping() error {
	if err := c.admit(TypePing, 8, controlReserve, false); err != nil {
		return err
	}
	var data [8]byte
	binary.BigEndian.PutUint64(data[:], uint64(time.Now().UnixMicro()))
	c.out.buf = AppendPing(c.out.buf, data)
	c.out.commit()
	return nil
}

// answerPing sends the PONG to a PING. A peer that pings and does not read
// loses the link.
func (c *Conn) answerPing(f Frame) error {
	data, err := f.ping()
	if err != nil {
		return err
	}
	if err := c.admit(TypePong, 8, controlReserve, false); err != nil {
		return err
	}
	c.out.buf = AppendPong(c.out.buf, data)
	c.out.commit()
	return nil
}

// sayWhy sends the ERROR about the link that goes before a close, if there is
// room.
func (c *Conn) sayWhy(e *wire.Error) {
	if c.admit(TypeError, len(e.Code)+1+len(e.Message), controlReserve, false) != nil {
		return
	}
	c.out.buf = AppendError(c.out.buf, 0, e.Code, e.Message)
	c.out.commit()
}

// admit checks the payload's length and locks the queue for it; see
// queue.admit.
func (c *Conn) admit(t Type, payload, reserve int, wait bool) error {
	if payload > c.limits.MaxFrame {
		return wire.Errorf(wire.CodeFrameTooLarge, "%s payload of %d bytes is over the link's limit of %d", t, payload, c.limits.MaxFrame)
	}
	return c.out.admit(HeaderSize+payload, reserve, wait)
}
