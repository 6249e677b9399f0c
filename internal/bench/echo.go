//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// serverAnswer is what a server says when it listens.
type serverAnswer struct{ Address string }

// echoRole is the server behind every relay: it returns what it reads.
func echoRole(_ []string, ask *json.Decoder, answer *json.Encoder) error {
	spareProcessor()
	fd, address, err := listenOn()
	if err != nil {
		return err
	}
	l, err := newLoop()
	if err != nil {
		return err
	}
	if err := l.watch(fd, syscall.EPOLLIN, &echoListener{l, fd}); err != nil {
		return err
	}
	if err := answer.Encode(serverAnswer{address}); err != nil {
		return err
	}
	failed := make(chan error, 2)
	go runLoop(l, failed)
	go func() { failed <- untilEOF(ask) }()
	return <-failed
}

// runLoop ends with its loop, at the latest with the process.
func runLoop(l *loop, failed chan<- error) {
	for {
		if err := l.turn(time.Hour); err != nil {
			failed <- err
			return
		}
	}
}

type echoListener struct {
	loop *loop
	fd   int
}

// ready implements handler.
func (e *echoListener) ready(uint32) error {
	for {
		fd, _, err := syscall.Accept4(e.fd, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		if err != nil {
			return nil //nolint:nilerr // nobody is left, the peer was quicker to leave, or descriptors ran out
		}
		conn := &echoConn{loop: e.loop, fd: fd}
		if err := errors.Join(noDelay(fd), e.loop.watch(fd, syscall.EPOLLIN, conn)); err != nil {
			return err
		}
	}
}

type echoConn struct {
	loop    *loop
	fd      int
	pending []byte // read and not yet written; while there is any, nothing is read
}

// ready implements handler. Whatever ends the connection is no error of the
// server.
func (c *echoConn) ready(uint32) error {
	if len(c.pending) > 0 {
		return c.write(c.pending)
	}
	n, err := recv(c.fd, c.loop.buf)
	switch {
	case err != nil && tryAgain(err):
		return nil
	case err != nil || n == 0:
		c.loop.drop(c.fd)
		return nil //nolint:nilerr // the client's end is not the server's
	}
	return c.write(c.loop.buf[:n])
}

func (c *echoConn) write(data []byte) error {
	n, err := send(c.fd, data)
	if err != nil && !tryAgain(err) {
		c.loop.drop(c.fd)
		return nil
	}
	rest := data[max(n, 0):]
	blocked := len(c.pending) > 0
	c.pending = append(c.pending[:0], rest...)
	switch {
	case len(rest) > 0 && !blocked:
		return c.loop.change(c.fd, syscall.EPOLLOUT)
	case len(rest) == 0 && blocked:
		return c.loop.change(c.fd, syscall.EPOLLIN)
	}
	return nil
}

// copyRole is the load balancer that anyone would write first: it accepts at
// its first argument, dials its second and copies both ways with io.Copy.
func copyRole(args []string, ask *json.Decoder, _ *json.Encoder) error {
	if len(args) != 2 {
		return fmt.Errorf("want two addresses, got %q", args)
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	go serve(listener, func(down *net.TCPConn) { relayTo(args[1], down) })
	return untilEOF(ask)
}

// serve accepts and handles connections until the process ends.
func serve(listener net.Listener, handle func(*net.TCPConn)) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the peer was quicker to leave, or descriptors ran out
		}
		go handle(conn.(*net.TCPConn))
	}
}

func relayTo(upstream string, down *net.TCPConn) {
	defer down.Close()
	conn, err := net.Dial("tcp", upstream)
	if err != nil {
		return
	}
	up := conn.(*net.TCPConn)
	defer up.Close()
	upwards := make(chan struct{})
	go copyHalf(up, down, upwards)
	copyHalf(down, up, nil)
	<-upwards
}

// copyHalf ends with its source, or when either connection breaks.
func copyHalf(dst, src *net.TCPConn, done chan<- struct{}) {
	_, err := io.Copy(dst, src)
	if err != nil {
		src.Close()
		dst.Close()
	}
	_ = dst.CloseWrite()
	if done != nil {
		close(done)
	}
}
