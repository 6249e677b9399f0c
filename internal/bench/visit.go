//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// visitSpec is the request to a load of visitors: AtOnce of them connect, send
// one message, wait for its echo, end the connection in good order, and begin
// anew, until a window has passed. The answer is a measurement, of connections.
type visitSpec struct {
	Address      string
	AtOnce       int
	Payload      int
	Warm, Window time.Duration
	PIDs         []int
}

// visitRole is the clients that come and go: it answers visitSpecs.
func visitRole(_ []string, ask *json.Decoder, answer *json.Encoder) error {
	spareProcessor()
	return answerEach(ask, answer, visit)
}

func visit(spec visitSpec) (measurement, error) {
	address, err := netip.ParseAddrPort(spec.Address)
	if err != nil {
		return measurement{}, err
	}
	l, err := newLoop()
	if err != nil {
		return measurement{}, err
	}
	defer l.close()
	door := &door{loop: l, address: address, again: true}
	for i := range spec.AtOnce {
		v := &visitor{door: door, number: uint32(i), message: bytes.Repeat([]byte{'x'}, spec.Payload), reply: make([]byte, spec.Payload)}
		if err := v.come(); err != nil {
			return measurement{}, err
		}
	}
	if err := l.turnUntil(time.Now().Add(spec.Warm)); err != nil {
		return measurement{}, err
	}
	if door.window, err = openWindow(spec.PIDs); err != nil {
		return measurement{}, err
	}
	if err := l.turnWhile(door.window, spec.Window); err != nil {
		return measurement{}, err
	}
	if err := door.window.close(); err != nil {
		return measurement{}, err
	}
	door.again = false
	for deadline := time.Now().Add(patience); door.inside > 0; {
		left := time.Until(deadline)
		if left <= 0 {
			return measurement{}, fmt.Errorf("%d connections did not end within %s", door.inside, patience)
		}
		if err := l.turn(left); err != nil {
			return measurement{}, err
		}
	}
	return door.window.result()
}

// door is what visitors share.
type door struct {
	loop    *loop
	address netip.AddrPort
	window  *window // nil before it opens
	again   bool    // whoever has gone comes again
	inside  int     // visitors that have come and not gone
}

// visitor is one connection after the other.
type visitor struct {
	door    *door
	number  uint32
	visits  uint64
	message []byte
	reply   []byte

	// Of the visit under way.
	fd    int
	stage stage
	began time.Time
	got   int // bytes of reply
}

type stage int

const (
	connecting stage = iota
	asking           // the message has been sent
	leaving          // its echo has come, and we have said that nothing more will
)

func (v *visitor) come() error {
	fd, err := startDial(v.door.address)
	if err != nil {
		return err
	}
	v.fd, v.stage, v.got, v.began = fd, connecting, 0, time.Now()
	v.visits++
	v.door.inside++
	return v.door.loop.watch(fd, syscall.EPOLLOUT, v)
}

// ready implements handler.
func (v *visitor) ready(uint32) error {
	var err error
	if v.stage == connecting {
		err = v.ask()
	} else {
		err = v.read()
	}
	if err != nil {
		return fmt.Errorf("connection %d of client %d: %w", v.visits, v.number, err)
	}
	return nil
}

func (v *visitor) ask() error {
	if err := dialled(v.fd); err != nil {
		return err
	}
	stamp(v.message, v.number, v.visits)
	// A new connection's send buffer holds the longest message.
	if _, err := send(v.fd, v.message); err != nil {
		return err
	}
	v.stage = asking
	return v.door.loop.change(v.fd, syscall.EPOLLIN)
}

func (v *visitor) read() error {
	n, err := recv(v.fd, v.door.loop.buf)
	switch {
	case err != nil && tryAgain(err):
		return nil
	case err != nil:
		return err
	case n == 0 && v.stage == leaving:
		return v.gone()
	case n == 0:
		return errors.New("closed by the relay before the echo")
	}
	if n > len(v.reply)-v.got {
		return fmt.Errorf("%d bytes more than were sent", n-(len(v.reply)-v.got))
	}
	v.got += copy(v.reply[v.got:], v.door.loop.buf[:n])
	if v.got < len(v.reply) {
		return nil
	}
	if !bytes.Equal(v.message, v.reply) {
		return fmt.Errorf("sent %x and got back %x", v.message[:minPayload], v.reply[:minPayload])
	}
	v.stage = leaving
	return syscall.Shutdown(v.fd, syscall.SHUT_WR)
}

// gone ends a visit.
func (v *visitor) gone() error {
	d := v.door
	d.loop.drop(v.fd)
	d.inside--
	if d.window != nil {
		d.window.count()
		d.window.record(time.Since(v.began))
	}
	if !d.again {
		return nil
	}
	return v.come()
}
