//go:build linux

package eventloop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/goshield/goshield/internal/porttest"
)

// FuzzLoop drives one loop by hand, turn by turn, between clients and upstreams that
// are driven by the input: two bytes an operation. What happens between two turns comes to the
// loop as one batch, so the fuzzer also decides what comes together. It compares what
// arrives with a model that knows no loop: two streams per connection, each a
// prefix of what was sent; all of it, then the end, where nobody has reset. An input of an odd number
// of bytes ends with how many KiB the loop may hold for readers that are slow.
func FuzzLoop(f *testing.F) {
	for _, seed := range fuzzSeeds() {
		f.Add(seed)
		f.Add(append(bytes.Clone(seed), 0))
		f.Add(append(bytes.Clone(seed), 40))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		w := newWorld(t)
		defer w.close()
		if n := len(input); n%2 == 1 {
			w.loop.holdLimit = int(input[n-1]) << 10
		}
		for i := 0; i+1 < len(input) && i < 400; i += 2 {
			w.do(input[i], input[i+1])
		}
		w.finish()
	})
}

// The operations. The low two bits of the first byte choose the connection; the second byte is the
// size of a write, in units that reach over every buffer.
const (
	opTurn = iota
	opConnect
	opAccept
	opClientWrite
	opClientRead
	opClientEnd
	opClientReset
	opUpstreamWrite
	opUpstreamRead
	opUpstreamEnd
	opUpstreamReset
	opListener // the first upstream goes, or comes back
	operations
)

func op(kind, conn, size int) []byte { return []byte{byte(kind<<2 | conn), byte(size)} }

func fuzzSeeds() [][]byte {
	join := func(ops ...[]byte) []byte { return bytes.Join(ops, nil) }
	open := join(op(opConnect, 0, 0), op(opTurn, 0, 0), op(opAccept, 0, 0), op(opTurn, 0, 0))
	return [][]byte{
		join(open, op(opClientWrite, 0, 3), op(opTurn, 0, 0), op(opUpstreamRead, 0, 0), op(opUpstreamWrite, 0, 9), op(opTurn, 0, 0), op(opClientRead, 0, 0)),
		join(open, op(opClientWrite, 0, 255), op(opClientWrite, 0, 255), op(opTurn, 0, 0), op(opClientEnd, 0, 0), op(opTurn, 0, 0), op(opUpstreamWrite, 0, 200), op(opUpstreamEnd, 0, 0)),
		// The upstream resets and the client sends in the same batch, before anything was relayed, and another
		// connection fills the buffer between the two.
		join(op(opConnect, 1, 0), op(opTurn, 0, 0), op(opAccept, 1, 0), op(opTurn, 0, 0), open, op(opUpstreamReset, 0, 0), op(opUpstreamWrite, 1, 80), op(opClientWrite, 0, 40), op(opTurn, 0, 0), op(opTurn, 0, 0), op(opAccept, 0, 0), op(opTurn, 0, 0), op(opUpstreamRead, 0, 0)),
		join(op(opListener, 0, 0), open, op(opClientWrite, 0, 50), op(opTurn, 0, 0), op(opListener, 0, 0)),
		join(open, op(opUpstreamWrite, 0, 255), op(opTurn, 0, 0), op(opClientReset, 0, 0), op(opTurn, 0, 0)),
		join(open, op(opUpstreamWrite, 0, 20), op(opUpstreamReset, 0, 0), op(opClientWrite, 0, 20), op(opTurn, 0, 0)),
	}
}

// worldPatience is shorter than what the fuzzer takes for a hang, and worldTurns is how often more the world is
// given a chance when that has passed: it may have passed while the machine stood still.
const (
	worldPatience = 5 * time.Second
	worldTurns    = 1000
)

// limit is how long something in the world may take.
type limit struct {
	deadline time.Time
	turns    int // after that
}

func newLimit() *limit { return &limit{deadline: time.Now().Add(worldPatience)} }

// over reports, once a turn, whether it has taken too long.
func (l *limit) over() bool {
	if time.Now().Before(l.deadline) {
		return false
	}
	l.turns++
	return l.turns > worldTurns
}

// world is a loop, two listening upstreams, and up to four connections.
type world struct {
	t         *testing.T
	engine    *Engine
	loop      *loop
	front     netip.AddrPort
	upstreams [2]int // listening descriptors, -1: gone
	director  *fuzzDirector
	conns     [4]*conversation
}

// fuzzDirector is the world's director: first upstream, second, none.
type fuzzDirector struct {
	addrs  [2]netip.AddrPort
	closed atomic.Int32
}

type fuzzPlacement struct {
	d     *fuzzDirector
	tries int
}

func (d *fuzzDirector) Admit(netip.AddrPort) Placement { return &fuzzPlacement{d: d} }

func (p *fuzzPlacement) Next(error) (netip.AddrPort, bool) {
	if p.tries == len(p.d.addrs) {
		return netip.AddrPort{}, false
	}
	p.tries++
	return p.d.addrs[p.tries-1], true
}

func (p *fuzzPlacement) Observe(Event, time.Duration) {}
func (p *fuzzPlacement) Closed(Result)                { p.d.closed.Add(1) }

// conversation is the model of one connection.
type conversation struct {
	client, upstream int // descriptors, -1: closed or not there
	port             uint16
	sent, got        [2]int  // bytes of each direction's stream: sent by, and received from, that side
	ended            [2]bool // that side sent its end
	seen             [2]bool // that side received the end
	disturbed        bool    // a side was reset, or was given up: anything may be missing
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, engine: &Engine{log: zap.NewNop(), epoch: time.Now(), holdLimit: holdLimit, emptied: make(chan struct{}, 1)}, director: &fuzzDirector{}}
	w.engine.settings.Store(&Settings{ConnectTimeout: time.Minute, IdleTimeout: time.Hour, ProxyHeader: true})
	l, err := newLoop(w.engine)
	if err != nil {
		t.Fatal(err)
	}
	l.buffer = make([]byte, 4096) // so that batches overflow it
	w.loop, w.engine.loops = l, []*loop{l}
	own := netip.AddrPortFrom(netip.MustParseAddr(porttest.Host()), 0)
	for i := range w.upstreams {
		w.upstreams[i] = w.listen(own)
		w.director.addrs[i] = localAddress(int32(w.upstreams[i]))
	}
	front := w.listen(own)
	w.front = localAddress(int32(front))
	ls := &listener{fd: int32(front), director: w.director}
	ls.attached.Store(1)
	l.attach(ls)
	return w
}

func (w *world) listen(addr netip.AddrPort) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())})
	if err == nil {
		err = unix.Listen(fd, 16)
	}
	if err == nil {
		return fd
	}
	_ = unix.Close(fd)
	if addr.Port() == 0 { // somebody else got the same port
		return w.listen(addr)
	}
	return -1
}

func (w *world) do(first, second byte) {
	i := int(first & 3)
	c := w.conns[i]
	size := int(second) * int(second) * 4
	switch kind := int(first>>2) % operations; kind {
	case opTurn:
		w.turn()
	case opConnect:
		if c == nil {
			w.connect(i)
		}
	case opAccept:
		w.accept()
	case opListener:
		w.toggle()
	default:
		if c != nil {
			w.operate(c, kind, size)
		}
	}
}

func (w *world) operate(c *conversation, kind, size int) {
	switch kind {
	case opClientWrite:
		w.write(c, client, size)
	case opClientRead:
		w.read(c, client)
	case opClientEnd:
		w.end(c, client)
	case opClientReset:
		w.reset(c, client)
	case opUpstreamWrite:
		w.write(c, upstream, size)
	case opUpstreamRead:
		w.read(c, upstream)
	case opUpstreamEnd:
		w.end(c, upstream)
	case opUpstreamReset:
		w.reset(c, upstream)
	}
}

func (w *world) turn() { w.loop.serve(epollPoll(w.loop.epoll, w.loop.events, 0)) }

func (w *world) connect(i int) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: w.front.Addr().As4(), Port: int(w.front.Port())}); err != nil && err != unix.EINPROGRESS {
		w.t.Fatal(err)
	}
	w.conns[i] = &conversation{client: fd, upstream: -1, port: localAddress(int32(fd)).Port()}
}

// accept takes what waits at the upstreams, and finds out by the PROXY header whose
// it is.
func (w *world) accept() {
	for _, ln := range w.upstreams {
		for ln >= 0 {
			fd, _, err := unix.Accept4(ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != nil {
				break
			}
			header := make([]byte, 28)
			n, err := w.await(func() (int, error) { return unix.Read(fd, header) })
			if n == 0 || err != nil { // its client had gone
				_ = unix.Close(fd)
				continue
			}
			if n != len(header) || !bytes.HasPrefix(header, []byte(proxySignature)) {
				w.t.Fatalf("the upstream got %x (%v), want a PROXY header first", header[:n], err)
			}
			switch c := w.byPort(binary.BigEndian.Uint16(header[24:])); {
			case c == nil || c.client < 0: // the loop has not heard of its end
				_ = unix.Close(fd)
			case c.upstream < 0: // to a second one everything is sent from the start
				c.upstream, c.got[client], c.ended[upstream], c.seen[upstream] = fd, 0, false, false
			default:
				w.t.Fatalf("a second connection for one client: %+v", c)
			}
		}
	}
}

func (w *world) byPort(port uint16) *conversation {
	for _, c := range w.conns {
		if c != nil && c.port == port {
			return c
		}
	}
	return nil
}

// await calls f, with the loop turning, until it has something.
func (w *world) await(f func() (int, error)) (int, error) {
	limit := newLimit()
	for {
		n, err := f()
		if err != unix.EAGAIN || limit.over() {
			return n, err
		}
		w.turn()
	}
}

// toggle closes the first upstream's listener, which resets what it has not
// accepted, or opens it again.
func (w *world) toggle() {
	if w.upstreams[0] < 0 {
		w.upstreams[0] = w.listen(w.director.addrs[0])
		return
	}
	w.accept()
	_ = unix.Close(w.upstreams[0])
	w.upstreams[0] = -1
}

func (c *conversation) fd(side int) *int {
	if side == client {
		return &c.client
	}
	return &c.upstream
}

// streamByte is byte n of what a side sends: no two streams have a run in common.
func (c *conversation) streamByte(side, n int) byte {
	x := uint32(n)*2654435761 ^ uint32(c.port)<<side
	return byte(x ^ x>>13 ^ x>>21 ^ uint32(side))
}

func (w *world) write(c *conversation, side, size int) {
	fd := *c.fd(side)
	if fd < 0 || c.ended[side] {
		return
	}
	data := make([]byte, size)
	for i := range data {
		data[i] = c.streamByte(side, c.sent[side]+i)
	}
	n, err := unix.SendmsgN(fd, data, nil, nil, unix.MSG_NOSIGNAL)
	switch {
	case err == nil:
		c.sent[side] += n
	case err != unix.EAGAIN:
		w.broken(c, side, err)
	}
}

// broken accepts an error only where somebody has reset or not been served.
func (w *world) broken(c *conversation, side int, err error) {
	if !c.disturbed && !(c.upstream < 0 && side == client) {
		w.t.Fatalf("side %d: %v on a connection that nobody reset: %+v", side, err, c)
	}
	c.disturbed = true
	fd := c.fd(side)
	_ = unix.Close(*fd)
	*fd = -1
}

func (w *world) read(c *conversation, side int) {
	fd := *c.fd(side)
	if fd < 0 || c.seen[side] {
		return
	}
	data := make([]byte, 32<<10)
	n, err := unix.Read(fd, data)
	if err == unix.EAGAIN {
		return
	}
	if err != nil {
		w.broken(c, side, err)
		return
	}
	other := side ^ 1
	for i, b := range data[:n] {
		if want := c.streamByte(other, c.got[other]+i); b != want {
			w.t.Fatalf("side %d: byte %d is %#x, want %#x: %+v", side, c.got[other]+i, b, want, c)
		}
	}
	if c.got[other] += n; c.got[other] > c.sent[other] {
		w.t.Fatalf("side %d: got %d bytes of %d: %+v", side, c.got[other], c.sent[other], c)
	}
	if n == 0 {
		c.seen[side] = true
		if !c.disturbed && (!c.ended[other] || c.got[other] != c.sent[other]) {
			w.t.Fatalf("side %d: ended after %d of %d bytes: %+v", side, c.got[other], c.sent[other], c)
		}
	}
}

func (w *world) end(c *conversation, side int) {
	if fd := *c.fd(side); fd >= 0 && !c.ended[side] {
		c.ended[side] = true
		_ = unix.Shutdown(fd, unix.SHUT_WR)
	}
}

func (w *world) reset(c *conversation, side int) {
	fd := c.fd(side)
	if *fd < 0 {
		return
	}
	resetOnClose(int32(*fd))
	_ = unix.Close(*fd)
	*fd = -1
	c.disturbed = true // and may yet be relayed to the other upstream, if nothing was to the first
}

// settle turns the loop until it has nothing to do.
func (w *world) settle() {
	for quiet := 0; quiet < 3; quiet++ {
		if n := epollPoll(w.loop.epoll, w.loop.events, 0); n > 0 || len(w.loop.ready) > 0 {
			w.loop.serve(n)
			quiet = 0
		}
	}
}

// finish lets everything flow, ends what is open, and checks that nothing is
// missing and nothing is left.
func (w *world) finish() {
	limit := newLimit()
	for open := true; open; {
		open = false
		w.settle()
		w.accept()
		for _, c := range w.conns {
			open = w.wind(c) || open
		}
		if limit.over() {
			w.t.Fatalf("never ended: %s", w)
		}
	}
	for w.loop.count.Load() > 0 {
		w.turn()
		if limit.over() {
			w.t.Fatalf("%d connections left in the loop: %s", w.loop.count.Load(), w)
		}
	}
	w.turn()
	l := w.loop
	if l.store.queued.Load() != 0 || l.pipes.open != len(l.pipes.idle) || len(l.reads) != 0 || l.wheel.next() != -1 {
		w.t.Fatalf("left behind: %d bytes queued, %d of %d pipes idle, %d reads, timer in %d",
			l.store.queued.Load(), len(l.pipes.idle), l.pipes.open, len(l.reads), l.wheel.next())
	}
}

// wind brings a conversation nearer to its end. It reports whether it is still open.
func (w *world) wind(c *conversation) bool {
	if c == nil || c.client < 0 && c.upstream < 0 {
		return false
	}
	for side := range 2 {
		w.end(c, side)
		w.read(c, side)
	}
	for side := range 2 {
		fd := c.fd(side)
		gone := *c.fd(side ^ 1) < 0 && (c.disturbed || c.seen[side])
		if *fd >= 0 && (c.seen[side] && (c.seen[side^1] || c.disturbed) || gone && c.seen[side]) {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
	return c.client >= 0 || c.upstream >= 0
}

func (w *world) String() string {
	var b bytes.Buffer
	for i, c := range w.conns {
		if c != nil {
			fmt.Fprintf(&b, "connection %d %+v; ", i, *c)
		}
	}
	return b.String()
}

func (w *world) close() {
	for _, c := range w.conns {
		for side := range 2 {
			if c != nil && *c.fd(side) >= 0 {
				_ = unix.Close(*c.fd(side))
			}
		}
	}
	w.loop.pairs.each(func(p *pair) { w.loop.finish(p, Cut) })
	w.loop.detach(w.loop.accepting.listeners[0])
	w.loop.release()
	for _, fd := range w.upstreams {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
