//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// The messages that clients and the echo server exchange. The shortest holds
// what makes it unlike every other one: the number of its connection and its own.
const (
	minPayload = 16
	maxPayload = 16 << 10
)

// patience is how long what has been begun may take to end: a dial and its
// first round trip, the answers that are under way when a window closes.
const patience = time.Minute

// loadSpec is the first request to a load: it opens its connections, makes one
// round trip on each, and answers with a loadAnswer.
type loadSpec struct {
	Address     string
	Connections int
	Payload     int
}

type loadAnswer struct{ Fault string }

// measureSpec is any further one; the answer is a measurement of Window, after
// Warm, with the CPU time of the processes PIDs.
//
// Without a Rate the loop is closed: every connection sends, waits for the echo
// and sends again. With one (messages a second, over all connections in turn) it
// is open: messages have their times, and are sent then whether answers have come
// or not, several on a connection if need be. How long one took counts from the
// time it was due, so that a relay that stalls is charged for all that it holds up.
//
// Again: the measurement goes on, after a pause in which there was no load. The answer is the sum of both windows.
type measureSpec struct {
	Warm, Window time.Duration
	PIDs         []int
	Rate         float64
	Again        bool
}

// answerEach answers every request of one kind until standard input ends.
func answerEach[S any](ask *json.Decoder, answer *json.Encoder, measure func(S) (measurement, error)) error {
	for {
		var spec S
		if err := ask.Decode(&spec); err != nil {
			return err
		}
		m, err := measure(spec)
		m.Fault = faultOf(err)
		if err := answer.Encode(m); err != nil {
			return err
		}
	}
}

// loadRole is the clients: a loadSpec, then any number of measureSpecs. The
// connections stay open until standard input ends.
func loadRole(_ []string, ask *json.Decoder, answer *json.Encoder) error {
	spareProcessor()
	var spec loadSpec
	if err := ask.Decode(&spec); err != nil {
		return err
	}
	l, err := openLoad(spec)
	if err := answer.Encode(loadAnswer{faultOf(err)}); err != nil {
		return err
	}
	if err == nil {
		defer l.close()
	}
	for err == nil {
		var spec measureSpec
		if err := ask.Decode(&spec); err != nil {
			return err
		}
		var m measurement
		m, err = l.measure(spec)
		m.Fault = faultOf(err)
		if err := answer.Encode(m); err != nil {
			return err
		}
	}
	return untilEOF(ask)
}

func faultOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// load is a set of connections through a relay, in one loop.
type load struct {
	loop    *loop
	clients []*client
	waiting int // answers that have not come

	// Of the measurement under way.
	closed   bool      // each answer is followed by the next message
	window   *window   // nil before it opens
	earlier  *window   // to be opened again; nil: a new one
	start    time.Time // when message 0 is due, in an open loop
	interval float64   // nanoseconds between messages, in an open loop
	from, to int64     // messages of the window, by number, in an open loop
}

// client is one connection.
type client struct {
	load     *load
	fd       int
	number   uint32
	open     bool
	sent     uint64
	received uint64
	message  []byte
	reply    []byte
	got      int       // bytes of reply
	unsent   []byte    // what the socket did not take
	began    time.Time // the message under way, in a closed loop
	answered int64     // messages of this measurement
}

// openLoad connects so many clients. Whoever opened a load closes it.
func openLoad(spec loadSpec) (*load, error) {
	address, err := netip.ParseAddrPort(spec.Address)
	if err != nil {
		return nil, err
	}
	loop, err := newLoop()
	if err != nil {
		return nil, err
	}
	l := &load{loop: loop}
	if err := l.open(address, spec); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// close resets all connections.
func (l *load) close() {
	for _, c := range l.clients {
		l.loop.drop(c.fd)
	}
	l.loop.close()
}

// open connects, 64 at a time.
func (l *load) open(address netip.AddrPort, spec loadSpec) error {
	deadline := time.Now().Add(patience)
	for len(l.clients) < spec.Connections || l.waiting > 0 {
		for len(l.clients) < spec.Connections && l.waiting < 64 {
			if err := l.dial(address, spec.Payload); err != nil {
				return fmt.Errorf("connection %d: %w", len(l.clients), err)
			}
		}
		waiting := l.waiting
		if err := l.loop.turn(time.Until(deadline)); err != nil {
			return err
		}
		if l.waiting < waiting {
			deadline = time.Now().Add(patience)
		} else if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d connections: no answer for %s", l.waiting, len(l.clients), patience)
		}
	}
	return nil
}

func (l *load) dial(address netip.AddrPort, payload int) error {
	fd, err := startDial(address)
	if err != nil {
		return err
	}
	// Reset on close: nothing is left in TIME_WAIT for the next round.
	linger := syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	c := &client{
		load: l, fd: fd, number: uint32(len(l.clients)),
		message: bytes.Repeat([]byte{'x'}, payload), reply: make([]byte, payload),
	}
	l.clients = append(l.clients, c)
	l.waiting++
	return errors.Join(linger, l.loop.watch(fd, syscall.EPOLLOUT, c))
}

// ready implements handler.
func (c *client) ready(events uint32) error {
	var err error
	switch {
	case !c.open:
		c.open = true
		c.load.waiting-- // what send adds again
		err = errors.Join(dialled(c.fd), c.load.loop.change(c.fd, syscall.EPOLLIN))
		if err == nil {
			err = c.send()
		}
	case events&syscall.EPOLLOUT != 0 && len(c.unsent) > 0:
		err = c.write(c.unsent)
	default:
		err = c.read()
	}
	if err != nil {
		return fmt.Errorf("connection %d: %w", c.number, err)
	}
	return nil
}

// send sends the next message, behind those that the socket has not taken.
func (c *client) send() error {
	c.sent++
	c.load.waiting++
	stamp(c.message, c.number, c.sent)
	if len(c.unsent) > 0 {
		c.unsent = append(c.unsent, c.message...)
		return nil
	}
	return c.write(c.message)
}

// stamp makes a message unlike every other one.
func stamp(message []byte, connection uint32, number uint64) {
	binary.BigEndian.PutUint32(message, connection)
	binary.BigEndian.PutUint64(message[4:], number)
}

func (c *client) write(data []byte) error {
	n, err := send(c.fd, data)
	if err != nil && !tryAgain(err) {
		return err
	}
	rest := data[max(n, 0):]
	blocked := len(c.unsent) > 0
	c.unsent = append(c.unsent[:0], rest...)
	switch {
	case len(rest) > 0 && !blocked:
		return c.load.loop.change(c.fd, syscall.EPOLLIN|syscall.EPOLLOUT)
	case len(rest) == 0 && blocked:
		return c.load.loop.change(c.fd, syscall.EPOLLIN)
	}
	return nil
}

// read takes what has come, which may be parts of answers, or several.
func (c *client) read() error {
	n, err := recv(c.fd, c.load.loop.buf)
	switch {
	case err != nil && tryAgain(err):
		return nil
	case err != nil:
		return err
	case n == 0:
		return errors.New("closed by the relay")
	}
	for data := c.load.loop.buf[:n]; len(data) > 0; {
		taken := copy(c.reply[c.got:], data)
		data = data[taken:]
		if c.got += taken; c.got < len(c.reply) {
			return nil
		}
		c.got = 0
		c.received++
		stamp(c.message, c.number, c.received)
		if !bytes.Equal(c.message, c.reply) {
			return fmt.Errorf("sent %x and got back %x", c.message[:minPayload], c.reply[:minPayload])
		}
		if err := c.load.answered(c); err != nil {
			return err
		}
	}
	return nil
}

// answered goes on after an answer to c.
func (l *load) answered(c *client) error {
	l.waiting--
	if l.window != nil {
		l.window.count()
	}
	if l.interval > 0 {
		number := c.answered*int64(len(l.clients)) + int64(c.number)
		c.answered++
		if number >= l.from && number < l.to {
			l.window.record(time.Since(l.due(number)))
		}
		return nil
	}
	if !l.closed {
		return nil
	}
	now := time.Now()
	if l.window != nil {
		l.window.record(now.Sub(c.began))
	}
	c.began = now
	return c.send()
}

// due is when a message of an open loop is to be sent.
func (l *load) due(number int64) time.Time {
	return l.start.Add(time.Duration(float64(number) * l.interval))
}
