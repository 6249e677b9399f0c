// Package handover replaces a running process by a new one of the same program, without a moment in
// which nobody listens: the new process gets the listening sockets themselves.
//
//	// in the process that runs, told to make room
//	err := handover.Start([]handover.Socket{{Address: ":8443", FD: fd}}, state, patience)
//	… // nil: the successor accepts; stop listening, drain, end
//
//	// in the process that starts
//	in, err := handover.Receive(os.Environ()) // nil: started by somebody else
//	ln := in.Listener(":8443")                // nil: it has not got that one
//	…
//	err = in.Ready() // accepting: the predecessor may go
//
// Two sockets with SO_REUSEPORT would not do: what waits in the queue of the one that is closed is
// reset. Here there is one socket, with one queue, which both processes accept from for a while.
//
// The successor is told what to expect through a pipe, and answers through another; an
// environment variable says that they are there. It is of use on a host, where a process can replace
// itself; a container ends with its first process.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// Env is the environment variable that tells a process that it is a successor.
const Env = "GOSHIELD_HANDOVER"

// The descriptors that a successor has beside the first three.
const (
	messageFD = 3 // to read the message from
	readyFD   = 4 // to say "ready" to
	socketsFD = 5 // the first of the sockets
)

// readyWord is the answer of a successor that accepts.
const readyWord = "ready\n"

// maxMessage bounds what a successor reads.
const maxMessage = 4 << 20

// Socket is a listening socket and the address it was configured with.
type Socket struct {
	Address string
	FD      int // stays the caller's
}

// message is what a successor is told.
type message struct {
	Sockets []string        `json:"sockets"` // addresses, in the order of descriptors
	State   json.RawMessage `json:"state"`
}

// Inheritance is what a successor got. It belongs to one goroutine. All methods can be called on nil,
// which is the inheritance of a process that has no predecessor.
type Inheritance struct {
	sockets []inherited
	state   json.RawMessage
	ready   *os.File
}

type inherited struct {
	address  string
	listener *net.TCPListener // nil: taken
}

// Receive takes what a predecessor left, if environ says that there is one, else nil.
func Receive(environ []string) (*Inheritance, error) {
	for _, e := range environ {
		if strings.HasPrefix(e, Env+"=") {
			return receive(os.NewFile(messageFD, "handover"), os.NewFile(readyFD, "ready"), socketsFD)
		}
	}
	return nil, nil //nolint:nilnil // no inheritance is a good one
}

func receive(from, ready *os.File, first uintptr) (*Inheritance, error) {
	if from == nil || ready == nil {
		return nil, fmt.Errorf("%s is set, and the descriptors that go with it are not there", Env)
	}
	defer from.Close()
	var m message
	if err := json.NewDecoder(io.LimitReader(from, maxMessage)).Decode(&m); err != nil {
		return nil, fmt.Errorf("read what the predecessor says: %w", err)
	}
	in := &Inheritance{state: m.State, ready: ready}
	for i, address := range m.Sockets {
		ln, err := listenerOf(first + uintptr(i))
		if err != nil {
			in.close()
			return nil, fmt.Errorf("take over %s: %w", address, err)
		}
		in.sockets = append(in.sockets, inherited{address, ln})
	}
	return in, nil
}

func listenerOf(fd uintptr) (*net.TCPListener, error) {
	file := os.NewFile(fd, "listener")
	if file == nil {
		return nil, os.ErrInvalid
	}
	defer file.Close() // FileListener has a copy
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(errors.New("not a TCP socket"), ln.Close())
	}
	return tcp, nil
}

// Listener returns the socket that was configured with this address, once; nil if there is none (left). It is
// the caller's.
func (in *Inheritance) Listener(address string) *net.TCPListener {
	if in == nil {
		return nil
	}
	for i := range in.sockets {
		if s := &in.sockets[i]; s.address == address && s.listener != nil {
			ln := s.listener
			s.listener = nil
			return ln
		}
	}
	return nil
}

// State decodes what the predecessor wanted its successor to know into v; without one it does nothing.
func (in *Inheritance) State(v any) error {
	if in == nil || len(in.state) == 0 {
		return nil
	}
	return json.Unmarshal(in.state, v)
}

// Ready tells the predecessor that it may go, and the service manager (systemd) which process is the main
// one now. Sockets that nobody took are closed.
func (in *Inheritance) Ready() error {
	if in == nil {
		return nil
	}
	_, err := io.WriteString(in.ready, readyWord)
	in.close()
	if err != nil {
		return fmt.Errorf("tell the predecessor: %w", err)
	}
	return notify(os.Getenv("NOTIFY_SOCKET"), os.Getpid())
}

func (in *Inheritance) close() {
	_ = in.ready.Close()
	for _, s := range in.sockets {
		if s.listener != nil {
			_ = s.listener.Close()
		}
	}
	in.sockets = nil
}

// notify speaks sd_notify(3). No socket, no manager.
func notify(socket string, pid int) error {
	if socket == "" {
		return nil
	}
	c, err := net.DialTimeout("unixgram", socket, time.Second)
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer c.Close()
	_, err = fmt.Fprintf(c, "READY=1\nMAINPID=%d\n", pid)
	return err
}
