package gateway

// The backends of TestHostileBackends: they lie, dawdle, send garbage, break off and die.

import (
	"bufio"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// hostileBackend is a backend that can be killed, and plays its part as badly as it can.
type hostileBackend struct {
	ordeal *ordeal
	addr   string

	mu       sync.Mutex
	ln       net.Listener
	conns    map[net.Conn]struct{}
	accepted int
	working  sync.WaitGroup
}

func newHostileBackend(t *testing.T, o *ordeal, host string) *hostileBackend {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	b := &hostileBackend{ordeal: o, addr: ln.Addr().String(), conns: map[net.Conn]struct{}{}}
	b.listen(ln)
	t.Cleanup(func() {
		b.kill()
		b.working.Wait()
	})
	return b
}

func (b *hostileBackend) listen(ln net.Listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ln = ln
	b.working.Go(func() { b.accept(ln) })
}

// accept ends with the listener.
func (b *hostileBackend) accept(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.accepted++
		b.conns[nc] = struct{}{}
		b.working.Go(func() { b.play(nc) })
		b.mu.Unlock()
	}
}

// kill resets every link, and refuses new ones.
func (b *hostileBackend) kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.ln.Close()
	for nc := range b.conns {
		_ = nc.(*net.TCPConn).SetLinger(0)
		_ = nc.Close()
	}
}

// restart listens again at the address it had.
func (b *hostileBackend) restart(t *testing.T) {
	eventually(t, "the backend's address is free", func() bool {
		ln, err := net.Listen("tcp", b.addr)
		if err != nil {
			return false
		}
		b.listen(ln)
		return true
	})
}

// links is how many it has now.
func (b *hostileBackend) links() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// hostileLink is its end of one link.
type hostileLink struct {
	*hostileBackend
	nc    net.Conn
	ended chan struct{}
	late  map[uint64][]byte // answers that wait until nobody does: owned by play
	mu    sync.Mutex        // of writes
}

// play ends with the connection.
func (b *hostileBackend) play(nc net.Conn) {
	l := &hostileLink{hostileBackend: b, nc: nc, ended: make(chan struct{}), late: map[uint64][]byte{}}
	defer func() {
		close(l.ended)
		_ = nc.Close()
		b.mu.Lock()
		delete(b.conns, nc)
		b.mu.Unlock()
	}()
	in := bufio.NewReaderSize(nc, 64<<10)
	if h, _, err := linkFrame(in); err != nil || h.Type != link.TypeHello {
		return
	}
	if !l.write(link.AppendHello(nil, &link.Hello{Node: "hostile", MaxFrame: 64 << 10, MaxStreams: 4096})) {
		return
	}
	for {
		h, payload, err := linkFrame(in)
		if err != nil {
			return
		}
		switch h.Type {
		case link.TypePing:
			l.write(link.AppendPong(nil, [8]byte(payload)))
		case link.TypeRequest:
			req, err := link.Frame{Header: h, Payload: payload}.Request()
			if err != nil || !l.handle(h.Stream, req) {
				return
			}
		case link.TypeCancel:
			if answer := l.late[h.Stream]; answer != nil {
				delete(l.late, h.Stream)
				l.write(answer)
			}
		}
	}
}

func linkFrame(in *bufio.Reader) (link.Header, []byte, error) {
	var head [link.HeaderSize]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return link.Header{}, nil, err
	}
	h, err := link.ParseHeader(head[:], link.MaxFrame)
	if err != nil {
		return h, nil, err
	}
	payload := make([]byte, h.Length)
	_, err = io.ReadFull(in, payload)
	return h, payload, err
}

func (l *hostileLink) write(b []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.nc.Write(b)
	return err == nil
}

// later writes after a while, if the link lasts so long.
func (l *hostileLink) later(d time.Duration, b []byte) {
	l.working.Go(func() { // ends with the link at the latest
		select {
		case <-time.After(d):
			l.write(b)
		case <-l.ended:
		}
	})
}

// poison is what no device may ever see.
var poison = []byte(`"another device's answer"`)

// handle answers one request, one way or another. false: the link is to end.
func (l *hostileLink) handle(stream uint64, req link.Request) bool {
	o := l.ordeal
	o.note(req)
	n := int(o.asked.Add(1))
	good := link.AppendResponse(nil, stream, hostileAnswer(req.ClientID, req.Body))
	if n%o.breakEvery == 0 {
		return l.breakOff(n/o.breakEvery, stream, good)
	}
	switch kind := n % 100; {
	case kind < 1: // late
		l.late[stream] = good
		return true
	case kind < 2: // never
		return true
	case kind < 3:
		return l.write(link.AppendError(nil, stream, wire.CodeBackendError, "no"))
	case kind < 4:
		return l.write(link.AppendError(nil, stream, wire.CodeBackendUnavailable, "not now"))
	case kind < 10: // slow
		l.later(time.Duration(1+rand.N(50))*time.Millisecond, good)
		return true
	case kind < 20: // twice, and then something else
		return l.write(link.AppendResponse(append(good, good...), stream, poison))
	case kind < 30: // under other numbers first
		var out []byte
		for _, other := range []uint64{stream + 2, stream - 2, stream ^ 1<<uint(22+rand.N(42)), 2 * uint64(1+rand.N(4096)), rand.Uint64() | 2} {
			out = link.AppendResponse(out, other, poison)
			out = link.AppendError(out, other, wire.CodeBackendError, "another's")
		}
		return l.write(append(out, good...))
	}
	return l.write(good)
}

// breakOff ends the link in one of many ways, with what it has in flight.
func (l *hostileLink) breakOff(kind int, stream uint64, good []byte) bool {
	switch kind % 5 {
	case 0: // within a frame
		l.write(good[:len(good)-3])
	case 1: // within a header
		l.write(good[:5])
	case 2:
		garbage := make([]byte, 256)
		for i := range garbage {
			garbage[i] = byte(rand.Uint32())
		}
		garbage[0] = 0x47 // no version of the link
		return l.write(garbage)
	case 3: // longer than was agreed
		return l.write(link.Header{Type: link.TypeResponse, Length: link.MaxFrame, Stream: stream}.Append(nil))
	case 4: // it leaves in good order
		return l.write(append(good, link.AppendGoaway(nil)...))
	}
	return false
}
