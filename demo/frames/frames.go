// Package frames is what the demo's client and server share: single frames of the
// device protocol, sent and read, and the rules of tokens in short.
package frames

import (
	"fmt"
	"io"
	"log"
	"net"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Check ends the program if there is an error.
func Check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// Conn is one connection, and what has been read of it.
type Conn struct {
	net.Conn
	in *wire.Reader
}

// New takes a connection over; Close closes it.
func New(c net.Conn) *Conn { return &Conn{Conn: c, in: wire.NewReader(c, 0)} }

// Send writes one frame.
func (c *Conn) Send(m wire.Message) error {
	out, err := wire.Append(nil, wire.Version1, m)
	if err == nil {
		_, err = c.Write(out)
	}
	return err
}

// Next reads one frame. The good-bye of a device is the end, io.EOF.
func (c *Conn) Next() (wire.Frame, error) {
	f, err := c.in.Next()
	if err == nil && f.Type == wire.TypeBye {
		err = io.EOF
	}
	return f, err
}

// Ask sends m and reads the answer into reply. An ERROR frame is an error.
func (c *Conn) Ask(m, reply wire.Message) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if err := c.Send(m); err != nil {
		return err
	}
	f, err := c.Next()
	switch {
	case err != nil:
		return err
	case f.Type == wire.TypeError:
		e := &wire.Error{}
		if err := wire.Unmarshal(f.Version, f.Payload, e); err != nil {
			return err
		}
		return e
	case f.Type != reply.Type():
		return fmt.Errorf("got %s, want %s", f.Type, reply.Type())
	}
	return wire.Unmarshal(f.Version, f.Payload, reply)
}

// Serve sends the answer to each frame until the device goes, or an answer ends
// the connection. It closes conn.
func Serve(conn net.Conn, answer func(wire.Frame) wire.Message) {
	defer conn.Close()
	c := New(conn)
	for {
		f, err := c.Next()
		if err != nil {
			return // also the load balancer's health checks, which say nothing
		}
		reply := answer(f)
		if e, ok := reply.(*wire.Error); c.Send(reply) != nil || ok && e.Close {
			return
		}
	}
}
