// Package accept is the accept loop that every listener uses: one that does
// not die, and does not spin, when the process runs out of file descriptors.
package accept

import (
	"errors"
	"net"
	"time"
)

// The pause after a failed Accept doubles from minPause to maxPause, and is
// forgotten after the next connection.
const (
	minPause = 5 * time.Millisecond
	maxPause = time.Second
)

// Loop accepts connections and calls handle with each, on the loop's own
// goroutine: handle must not block for long, and owns the connection. It returns
// when ln is closed. onError (may be nil) hears of each failure that is waited out.
func Loop(ln net.Listener, handle func(net.Conn), onError func(err error, pause time.Duration)) {
	for {
		conn, err := Next(ln, onError)
		if err != nil {
			return
		}
		handle(conn)
	}
}

// Next accepts one connection, which is the caller's. The error is that ln is closed; other failures are waited out, and
// onError (may be nil) hears of each.
func Next(ln net.Listener, onError func(err error, pause time.Duration)) (net.Conn, error) {
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		conn, err := ln.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return conn, err
		}
		if onError != nil {
			onError(err, pause)
		}
		time.Sleep(pause)
	}
}
