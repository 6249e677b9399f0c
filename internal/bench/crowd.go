//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/goshield/goshield/internal/quicktcp"
)

// crowdSpec is the first request to a crowd, and may come again: so many more
// clients connect by TLS, and make a round trip each. The answer is a
// loadAnswer.
type crowdSpec struct {
	Address     string
	Connections int // more than there are
	Payload     int
	Version     byte          // of the device protocol; 0: what is behind the address echoes
	Heartbeat   time.Duration // each gives a sign of life so often; 0: none does
}

// beatsSpec waits until each member has had so many of its signs of life answered. The answer is a loadAnswer.
type beatsSpec struct {
	Times  int
	Within time.Duration
}

// hushSpec has all be silent from now on; the answer, a loadAnswer, comes after Silence.
type hushSpec struct{ Silence time.Duration }

// wakeSpec, after a hushSpec, asks the first Members for two round trips each, while the others give signs of life again. The
// answer is a wakeAnswer.
type wakeSpec struct{ Members int }

// wakeAnswer has medians: of the first round trip after the silence, and of the
// one right behind it.
type wakeAnswer struct {
	Fault         string
	First, Second time.Duration
}

// crowdRequest is one of them.
type crowdRequest struct {
	Open    *crowdSpec
	Measure *measureSpec
	Beats   *beatsSpec
	Hush    *hushSpec
	Wake    *wakeSpec
}

// crowdRole is clients over TLS, with a goroutine each: crypto/tls knows no other
// way. They stay until standard input ends.
func crowdRole(_ []string, ask *json.Decoder, answer *json.Encoder) error {
	c := newCrowd()
	defer c.close()
	for {
		var request crowdRequest
		if err := ask.Decode(&request); err != nil {
			return err
		}
		var reply any
		switch {
		case request.Open != nil:
			reply = loadAnswer{faultOf(c.open(*request.Open))}
		case request.Measure != nil:
			m, err := c.measure(*request.Measure)
			m.Fault = faultOf(err)
			reply = m
		case request.Beats != nil:
			reply = loadAnswer{faultOf(c.awaitBeats(*request.Beats))}
		case request.Hush != nil:
			reply = loadAnswer{faultOf(c.hush(*request.Hush))}
		case request.Wake != nil:
			w, err := c.wake(*request.Wake)
			w.Fault = faultOf(err)
			reply = w
		}
		if err := answer.Encode(reply); err != nil {
			return err
		}
	}
}

// crowd is a set of clients.
type crowd struct {
	ctx     context.Context // ended by close
	end     context.CancelFunc
	running sync.WaitGroup
	members []*member
	failed  chan error   // the first fault of a member
	waiting atomic.Int64 // answers that have not come
	quiet   atomic.Int64 // so many members, the first ones, give no sign of life
	earlier *window      // to be opened again; nil: a new one. Only measure knows it

	mu       sync.Mutex // guards the rest
	closed   bool       // each answer is followed by the next message
	window   *window    // nil before it opens
	start    time.Time  // when message 0 is due, in an open loop
	interval float64    // nanoseconds between messages, in an open loop
	from, to int64      // messages of the window, by number, in an open loop
}

// member is one client.
type member struct {
	crowd    *crowd
	conn     net.Conn
	speech   speech
	number   int
	answered chan struct{} // for who waits for one round trip

	signed atomic.Uint32 // the message that was the last sign of life; 0: devices' are none
	beaten atomic.Int64  // signs of life that were answered

	mu    sync.Mutex // held while sending
	sent  uint32
	out   []byte
	began time.Time // the message under way, in a closed loop

	base uint32 // messages before this measurement; set while none is under way
}

func newCrowd() *crowd {
	ctx, cancel := context.WithCancel(context.Background())
	return &crowd{ctx: ctx, end: cancel, failed: make(chan error, 1)}
}

// close ends all connections, and returns when all goroutines have ended.
func (c *crowd) close() {
	c.end()
	c.running.Wait()
}

func (c *crowd) open(spec crowdSpec) error {
	before := len(c.members)
	slots := make(chan struct{}, 16) // handshakes at the same time
	for i := range spec.Connections {
		m := &member{crowd: c, number: before + i, answered: make(chan struct{}, 1)}
		c.members = append(c.members, m)
		select {
		case slots <- struct{}{}:
		case err := <-c.failed:
			return err
		}
		c.running.Go(func() { m.live(spec, slots) })
	}
	for range cap(slots) {
		select {
		case slots <- struct{}{}:
		case err := <-c.failed:
			return err
		}
	}
	if spec.Heartbeat > 0 {
		members := c.members[before:]
		c.running.Go(func() { c.beat(members, spec.Heartbeat) })
	}
	return nil
}

// fail keeps the first fault.
func (c *crowd) fail(err error) {
	select {
	case c.failed <- err:
	default:
	}
}

// live connects, gives its slot back, and reads until the crowd is closed or
// the connection fails.
func (m *member) live(spec crowdSpec, slots <-chan struct{}) {
	if err := m.connect(spec); err != nil {
		m.crowd.fail(fmt.Errorf("client %d: %w", m.number, err))
		return
	}
	defer m.conn.Close()
	defer context.AfterFunc(m.crowd.ctx, func() { m.conn.Close() })()
	<-slots
	for {
		number, err := m.speech.next()
		if err == nil && number == m.signed.Load() {
			m.beaten.Add(1)
		}
		if err == nil && number != 0 {
			err = m.crowd.answered(m, number)
		}
		if err != nil {
			m.crowd.fail(fmt.Errorf("client %d: %w", m.number, err))
			return
		}
	}
}

// connect opens the connection and makes a round trip.
func (m *member) connect(spec crowdSpec) error {
	ctx, cancel := context.WithTimeout(m.crowd.ctx, patience)
	defer cancel()
	var dialer net.Dialer
	tcp, err := dialer.DialContext(ctx, "tcp", spec.Address)
	if err != nil {
		return err
	}
	conn := tls.Client(quicktcp.Wrap(tcp), clientTLS(nil))
	if err := conn.HandshakeContext(ctx); err != nil {
		return errors.Join(err, tcp.Close())
	}
	m.conn = conn
	if spec.Version != 0 {
		m.speech = newDeviceSpeech(conn, spec.Version, uint32(m.number), spec.Payload)
	} else {
		m.speech = newEchoSpeech(conn, uint32(m.number), spec.Payload)
	}
	err = errors.Join(conn.SetDeadline(time.Now().Add(patience)), m.speech.greet())
	if err == nil {
		err = m.send()
	}
	if err == nil {
		_, err = m.speech.next()
		m.crowd.waiting.Add(-1)
	}
	if err = errors.Join(err, conn.SetDeadline(time.Time{})); err != nil {
		conn.Close()
	}
	return err
}

// send sends the next message.
func (m *member) send() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent++
	m.crowd.waiting.Add(1)
	m.out = m.speech.appendAsk(m.out[:0], m.sent)
	m.began = time.Now()
	_, err := m.conn.Write(m.out)
	return err
}

// sign gives a sign of life.
func (m *member) sign() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	out, counts := m.speech.appendBeat(m.out[:0], m.sent+1)
	if counts {
		m.sent++
		m.signed.Store(m.sent)
		m.crowd.waiting.Add(1)
	}
	m.out = out
	_, err := m.conn.Write(m.out)
	return err
}

// beat has members give signs of life in turn, until the crowd is closed.
func (c *crowd) beat(members []*member, each time.Duration) {
	next := time.NewTicker(each / time.Duration(len(members)))
	defer next.Stop()
	for {
		for _, m := range members {
			select {
			case <-next.C:
			case <-c.ctx.Done():
				return
			}
			if int64(m.number) < c.quiet.Load() {
				continue
			}
			if err := m.sign(); err != nil {
				c.fail(fmt.Errorf("client %d: %w", m.number, err))
				return
			}
		}
	}
}

// answered goes on after an answer to m.
func (c *crowd) answered(m *member, number uint32) error {
	defer c.waiting.Add(-1) // last: at zero measure takes the window's result, with no message under way
	select {
	case m.answered <- struct{}{}:
	default:
	}
	if c.note(m, number) {
		return m.send()
	}
	return nil
}

// note counts an answer and says whether another message follows it.
func (c *crowd) note(m *member, number uint32) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.window != nil {
		c.window.count()
	}
	if c.interval > 0 {
		due := int64(number-m.base-1)*int64(len(c.members)) + int64(m.number)
		if due >= c.from && due < c.to {
			c.window.record(time.Since(c.due(due)))
		}
	} else if c.closed && c.window != nil {
		c.window.record(time.Since(m.began))
	}
	return c.closed
}

// due is when a message of an open loop is to be sent.
func (c *crowd) due(number int64) time.Time {
	return c.start.Add(time.Duration(float64(number) * c.interval))
}

// measure runs one measurement. When it returns no message is under way.
func (c *crowd) measure(spec measureSpec) (measurement, error) {
	for _, m := range c.members {
		m.base = m.sent
	}
	run := c.runClosed
	if spec.Rate > 0 {
		run = c.runOpen
	}
	c.set(spec)
	if err := run(spec); err != nil {
		return measurement{}, err
	}
	c.mu.Lock()
	c.closed = false
	c.mu.Unlock()
	deadline := time.Now().Add(patience)
	for c.waiting.Load() > 0 {
		if err := pauseUnless(c.failed, time.Millisecond); err != nil {
			return measurement{}, err
		}
		if time.Now().After(deadline) {
			return measurement{}, fmt.Errorf("%d messages were not answered within %s", c.waiting.Load(), patience)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.window.result()
}

func (c *crowd) set(spec measureSpec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.earlier = nil
	if spec.Again {
		c.earlier = c.window
	}
	c.closed, c.window, c.interval = spec.Rate == 0, nil, 0
	if spec.Rate > 0 {
		c.interval = float64(time.Second) / spec.Rate
		c.from = int64(spec.Warm.Seconds() * spec.Rate)
		c.to = max(int64((spec.Warm+spec.Window).Seconds()*spec.Rate), c.from+1)
		c.start = time.Now()
	}
}

func (c *crowd) openWindow(spec measureSpec) error {
	w, err := openOr(c.earlier, spec.PIDs)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.window = w
	return err
}

// closeWindow closes it after so long, or later if it is wanting.
func (c *crowd) closeWindow(after time.Duration) error {
	for {
		if err := pauseUnless(c.failed, after); err != nil {
			return err
		}
		c.mu.Lock()
		wanting := c.window.wanting()
		c.mu.Unlock()
		if !wanting {
			break
		}
		after = 10 * time.Millisecond
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.window.close()
}

func (c *crowd) runClosed(spec measureSpec) error {
	for _, m := range c.members {
		if err := m.send(); err != nil {
			return err
		}
	}
	if err := pauseUnless(c.failed, spec.Warm); err != nil {
		return err
	}
	if err := c.openWindow(spec); err != nil {
		return err
	}
	return c.closeWindow(spec.Window)
}

func (c *crowd) runOpen(spec measureSpec) error {
	for number := int64(0); number < c.to; number++ {
		for left := time.Until(c.due(number)); left > 0; left = time.Until(c.due(number)) {
			limit := unix.NsecToTimespec(left.Nanoseconds())
			_ = unix.Nanosleep(&limit, nil) // a signal may end it early
		}
		if number == c.from {
			if err := c.openWindow(spec); err != nil {
				return err
			}
		}
		if err := c.members[number%int64(len(c.members))].send(); err != nil {
			return err
		}
	}
	return c.closeWindow(time.Until(c.due(c.to)))
}

// awaitBeats waits for each member's signs of life.
func (c *crowd) awaitBeats(spec beatsSpec) error {
	deadline := time.Now().Add(spec.Within)
	for _, m := range c.members {
		for m.beaten.Load() < int64(spec.Times) {
			if time.Now().After(deadline) {
				return fmt.Errorf("client %d: %d of %d signs of life were answered within %s", m.number, m.beaten.Load(), spec.Times, spec.Within)
			}
			if err := pauseUnless(c.failed, 10*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *crowd) hush(spec hushSpec) error {
	c.quiet.Store(int64(len(c.members)))
	return pauseUnless(c.failed, spec.Silence)
}

func (c *crowd) wake(spec wakeSpec) (wakeAnswer, error) {
	members := c.members[:min(spec.Members, len(c.members))]
	c.quiet.Store(int64(len(members)))
	defer c.quiet.Store(0)
	var first, second []time.Duration
	for _, m := range members {
		a, err := m.roundTrip()
		if err != nil {
			return wakeAnswer{}, err
		}
		b, err := m.roundTrip()
		if err != nil {
			return wakeAnswer{}, err
		}
		first, second = append(first, a), append(second, b)
	}
	slices.Sort(first)
	slices.Sort(second)
	return wakeAnswer{First: first[len(first)/2], Second: second[len(second)/2]}, nil
}

// roundTrip is one, of a member that has none under way.
func (m *member) roundTrip() (time.Duration, error) {
	select {
	case <-m.answered: // of long ago
	default:
	}
	begin := time.Now()
	if err := m.send(); err != nil {
		return 0, err
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-m.answered:
		return time.Since(begin), nil
	case err := <-m.crowd.failed:
		return 0, err
	case <-late.C:
		return 0, fmt.Errorf("client %d: no answer for %s", m.number, patience)
	}
}
