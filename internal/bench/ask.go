//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// askSpec is the request to clients of an HTTP API; the answer is a measurement. Each connection asks, waits for the
// answer, and asks again, each time with the number of another device in place of numberMark, until each device had its turn. No
// two connections ask about the same.
type askSpec struct {
	Address, Secret, Path, Body string
	Connections, Devices        int
	Warm, Window                time.Duration
	PIDs                        []int
}

func askRole(_ []string, ask *json.Decoder, answer *json.Encoder) error {
	return answerEach(ask, answer, askAll)
}

// callers are a set of connections, in one loop.
type callers struct {
	loop    *loop
	each    []*caller
	devices int
	window  *window // nil before it opens
	ending  bool    // nothing new is asked
	waiting int
}

// caller is one connection.
type caller struct {
	all     *callers
	fd      int
	device  int // whose turn it is; the next one is as many further as there are connections
	open    bool
	request []byte
	number  []byte // of the device, in request
	answer  []byte // what has come of it
	began   time.Time
}

func askAll(spec askSpec) (measurement, error) {
	address, err := netip.ParseAddrPort(spec.Address)
	if err != nil {
		return measurement{}, err
	}
	loop, err := newLoop()
	if err != nil {
		return measurement{}, err
	}
	a := &callers{loop: loop, devices: spec.Devices}
	defer a.close()
	body := bytes.Replace([]byte(spec.Body), []byte(numberMark), []byte(deviceNumber(0)), 1)
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		spec.Path, spec.Address, spec.Secret, len(body))
	at := len(head) + bytes.Index([]byte(spec.Body), []byte(numberMark))
	for i := range spec.Connections {
		fd, err := startDial(address)
		if err != nil {
			return measurement{}, err
		}
		c := &caller{all: a, fd: fd, device: i, request: append([]byte(head), body...)}
		c.number = c.request[at : at+numberDigits]
		a.each = append(a.each, c)
		if err := loop.watch(fd, syscall.EPOLLOUT, c); err != nil {
			return measurement{}, err
		}
	}
	return a.measure(spec)
}

func (a *callers) close() {
	for _, c := range a.each {
		a.loop.drop(c.fd)
	}
	a.loop.close()
}

func (a *callers) measure(spec askSpec) (measurement, error) {
	err := a.loop.turnUntil(time.Now().Add(spec.Warm))
	if err == nil {
		a.window, err = openWindow(spec.PIDs)
	}
	if err == nil {
		err = a.loop.turnWhile(a.window, spec.Window)
	}
	if err == nil {
		err = a.window.close()
	}
	if err != nil {
		return measurement{}, err
	}
	a.ending = true
	for deadline := time.Now().Add(patience); a.waiting > 0; {
		left := time.Until(deadline)
		if left <= 0 {
			return measurement{}, fmt.Errorf("%d requests were not answered within %s", a.waiting, patience)
		}
		if err := a.loop.turn(left); err != nil {
			return measurement{}, err
		}
	}
	return a.window.result()
}

// ready implements handler.
func (c *caller) ready(uint32) error {
	if !c.open {
		c.open = true
		if err := errors.Join(dialled(c.fd), c.all.loop.change(c.fd, syscall.EPOLLIN)); err != nil {
			return err
		}
		return c.ask()
	}
	n, err := syscall.Read(c.fd, c.all.loop.buf)
	switch {
	case err != nil && tryAgain(err):
		return nil
	case err != nil:
		return err
	case n == 0:
		return errors.New("closed by the server")
	}
	c.answer = append(c.answer, c.all.loop.buf[:n]...)
	length, err := answerLength(c.answer)
	switch {
	case err != nil:
		return err
	case length == 0 || len(c.answer) < length:
		return nil
	case len(c.answer) > length:
		return fmt.Errorf("more than an answer: %q", c.answer)
	}
	c.all.waiting--
	if w := c.all.window; w != nil {
		w.count()
		w.record(time.Since(c.began))
	}
	if c.all.ending {
		return nil
	}
	return c.ask()
}

// ask sends a request about the next device. A socket without an unanswered request takes the whole of it.
func (c *caller) ask() error {
	c.answer = c.answer[:0]
	c.turn()
	c.all.waiting++
	c.began = time.Now()
	n, err := syscall.Write(c.fd, c.request)
	if err == nil && n < len(c.request) {
		err = errors.New("the socket takes no request")
	}
	return err
}

// turn puts the number of the next device into the request.
func (c *caller) turn() {
	digits := strconv.AppendInt(nil, int64(c.device), 10)
	for i := range c.number {
		c.number[i] = '0'
	}
	copy(c.number[len(c.number)-len(digits):], digits)
	if c.device += len(c.all.each); c.device >= c.all.devices {
		c.device %= len(c.all.each)
	}
}

// answerLength is that of a whole answer, as soon as its head is there; 0 before. One that says anything
// but 200 is an error.
func answerLength(answer []byte) (int, error) {
	head, _, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !ok {
		return 0, nil
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("answered %q", answer)
	}
	_, rest, ok := bytes.Cut(head, []byte("\r\nContent-Length: "))
	if !ok {
		return 0, fmt.Errorf("an answer without a length: %q", answer)
	}
	digits, _, _ := bytes.Cut(rest, []byte("\r\n"))
	length, err := strconv.Atoi(string(digits))
	return len(head) + len("\r\n\r\n") + length, err
}
