//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What the source sends on each connection, again and again. Its length is no
// multiple of any buffer's, so that bytes that were moved are noticed.
const patternLength = 4<<20 - 3

func pattern() []byte {
	p := make([]byte, patternLength)
	x := uint32(1)
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}

// sourceRole is the server behind a relay that streams: it sends the pattern
// without end to whoever connects. It writes it from memory, not by sendfile(2):
// that hands out single pages, of which a relay that splices moves one by one
// where it would have moved eight.
func sourceRole(_ []string, ask *json.Decoder, answer *json.Encoder) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := answer.Encode(serverAnswer{listener.Addr().String()}); err != nil {
		return err
	}
	data := pattern()
	go serve(listener, func(conn *net.TCPConn) { streamTo(conn, data) })
	return untilEOF(ask)
}

// streamTo ends when the client has gone.
func streamTo(conn *net.TCPConn, data []byte) {
	defer conn.Close()
	for {
		if _, err := conn.Write(data); err != nil {
			return
		}
	}
}

// drainSpec is the request to a sink: it opens its connections, compares the
// first part of what comes on each with the pattern, and takes the rest unseen
// for Warm and Window. The answer is a measurement, of bytes.
type drainSpec struct {
	Address      string
	Connections  int
	Warm, Window time.Duration
	PIDs         []int
}

// drainRole is the clients of a source: it answers drainSpecs.
func drainRole(_ []string, ask *json.Decoder, answer *json.Encoder) error {
	return answerEach(ask, answer, drain)
}

func drain(spec drainSpec) (measurement, error) {
	want := pattern()
	deadline := time.Now().Add(patience + spec.Warm + spec.Window)
	var taken atomic.Int64
	var running sync.WaitGroup
	defer running.Wait()
	failed := make(chan error, spec.Connections)
	for range spec.Connections {
		conn, err := net.DialTimeout("tcp", spec.Address, patience)
		if err != nil {
			return measurement{}, err
		}
		defer conn.Close()
		if err := conn.SetDeadline(deadline); err != nil {
			return measurement{}, err
		}
		running.Go(func() { failed <- take(conn.(*net.TCPConn), want, &taken) })
	}
	if err := pauseUnless(failed, spec.Warm); err != nil {
		return measurement{}, err
	}
	before := taken.Load()
	w, err := openWindow(spec.PIDs)
	if err != nil {
		return measurement{}, err
	}
	for pause := spec.Window; w.wanting(); pause = 10 * time.Millisecond {
		if err := pauseUnless(failed, pause); err != nil {
			return measurement{}, err
		}
		w.counts.Bytes = taken.Load() - before
	}
	if err := w.close(); err != nil {
		return measurement{}, err
	}
	return w.result()
}

// pauseUnless waits, unless a connection fails.
func pauseUnless(failed <-chan error, d time.Duration) error {
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case err := <-failed:
		return err
	case <-over.C:
		return nil
	}
}

// take reads a stream until it is closed by our side, and counts its bytes. The
// kernel throws away what is taken unseen: it is not copied either.
func take(conn *net.TCPConn, want []byte, taken *atomic.Int64) error {
	got := make([]byte, len(want)+len(want)/2)
	n, err := io.ReadFull(conn, got)
	taken.Add(int64(n))
	if err != nil {
		return err
	}
	if !bytes.Equal(got[:len(want)], want) || !bytes.Equal(got[len(want):], want[:len(got)-len(want)]) {
		return errors.New("what came is not what was sent")
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var fault error
		err := raw.Read(func(fd uintptr) bool {
			n, _, fault = syscall.Recvfrom(int(fd), got, syscall.MSG_TRUNC)
			return fault == nil || !tryAgain(fault)
		})
		switch {
		case err != nil:
			return err
		case fault != nil:
			return fault
		case n == 0:
			return errors.New("closed by the relay")
		}
		taken.Add(int64(n))
	}
}
