package gateway

// RELIABILITY rows 26 and 29, with devices: backends that lie, dawdle, send garbage, break off and die. Every
// answer is its request's, and no device loses its connection by it.

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// hostileTimeout is the services', at first.
const hostileTimeout = time.Second

// ordeal is the whole of it: the same for all its backends and devices.
type ordeal struct {
	devices, each int // requests of a device
	breakEvery    int // requests between two links that a backend breaks
	kills         int // of backends, one after the other

	asked    atomic.Int64 // requests that reached a backend
	ended    atomic.Int64 // requests that were answered, by whatever
	answered atomic.Int64 // with their body
	failed   sync.Map     // wire.Code to *atomic.Int64

	executed [][]atomic.Uint32 // times that a request which must not be repeated reached a backend: by device and number
}

// A request is known by its device and its number, an answer by the request and the
// client_id that the backend was told.

func hostileID(device int) (id wire.ClientID) {
	id[0] = 0xde
	binary.BigEndian.PutUint32(id[4:], uint32(device))
	return id
}

func hostileBody(device, n int) []byte { return fmt.Appendf(nil, `[%d,%d]`, device, n) }

func hostileAnswer(id wire.ClientID, body []byte) []byte {
	return fmt.Appendf(nil, `["%s",%s]`, hex.EncodeToString(id[:8]), body)
}

// hostileService is the one that request n asks: half of them may be sent again.
func hostileService(n int) string { return []string{"once", "again"}[n%2] }

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

// note counts a request that must not come twice.
func (o *ordeal) note(req link.Request) {
	if req.Service != "once" {
		return
	}
	var at [2]int
	if json.Unmarshal(req.Body, &at) == nil {
		o.executed[at[0]][at[1]].Add(1)
	}
}

// torment is one device: it keeps some requests in flight until all are answered. It
// fails if its connection ends, or an answer is not what it must be.
func (o *ordeal) torment(conn net.Conn, device int) error {
	const inFlight = 4
	id := hostileID(device)
	in := wire.NewReader(conn, wire.MaxPayload)
	frame, err := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: id})
	if err != nil {
		return err
	}
	f, err := exchange(conn, in, frame)
	if err != nil {
		return err
	}
	var welcome wire.Welcome
	if err := expect(f, &welcome); err != nil {
		return err
	}
	open := map[uint32]int{}
	for sent, done := 0, 0; done < o.each; done++ {
		frame = frame[:0]
		for ; sent < o.each && len(open) < inFlight; sent++ {
			number := uint32(sent + 1)
			open[number] = sent
			frame, err = wire.Append(frame, wire.Version1, &wire.Request{ID: number, Token: welcome.Token, Service: hostileService(sent), Body: hostileBody(device, sent)})
			if err != nil {
				return err
			}
		}
		if f, err = exchange(conn, in, frame); err != nil {
			return fmt.Errorf("after %d answers: %w", done, err)
		}
		if err := o.judge(f, id, device, open); err != nil {
			return err
		}
		o.ended.Add(1)
	}
	return nil
}

// exchange writes what there is to write, and reads a frame.
func exchange(conn net.Conn, in *wire.Reader, frame []byte) (wire.Frame, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return wire.Frame{}, err
	}
	if len(frame) > 0 {
		if _, err := conn.Write(frame); err != nil {
			return wire.Frame{}, err
		}
	}
	return in.Next()
}

func expect(f wire.Frame, m wire.Message) error {
	if f.Type != m.Type() {
		return fmt.Errorf("got %s %s, want %s", f.Type, f.Payload, m.Type())
	}
	return wire.Unmarshal(f.Version, f.Payload, m)
}

// judge takes one answer, which is for one of the open requests.
func (o *ordeal) judge(f wire.Frame, id wire.ClientID, device int, open map[uint32]int) error {
	if f.Type == wire.TypeError {
		var e wire.Error
		if err := expect(f, &e); err != nil {
			return err
		}
		if _, ok := open[e.ID]; !ok || !e.HasID || e.Close {
			return fmt.Errorf("an error that is no open request's: %s", f.Payload)
		}
		delete(open, e.ID)
		count, _ := o.failed.LoadOrStore(e.Code, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
		return nil
	}
	var resp wire.Response
	if err := expect(f, &resp); err != nil {
		return err
	}
	n, ok := open[resp.ID]
	if !ok {
		return fmt.Errorf("answer %d is no open request's: %s", resp.ID, resp.Body)
	}
	delete(open, resp.ID)
	if want := hostileAnswer(id, hostileBody(device, n)); !bytes.Equal(resp.Body, want) {
		return fmt.Errorf("answer %d is %s, want %s", resp.ID, resp.Body, want)
	}
	o.answered.Add(1)
	return nil
}

func TestHostileBackends(t *testing.T) {
	// On a machine that is short of time honest answers, too, take longer than a second: then services have more.
	for timeout := hostileTimeout; !withstand(t, timeout); timeout *= 5 {
		if timeout > 20*time.Second {
			t.Fatalf("with a timeout of %v less than half of the requests were answered with their body: this tests little", timeout)
		}
	}
}

// withstand reports whether most requests were answered with their body.
func withstand(t *testing.T, timeout time.Duration) bool {
	t.Helper()
	o := &ordeal{devices: 100, each: 200, breakEvery: 2000, kills: 6}
	if long {
		o = &ordeal{devices: 2000, each: 500, breakEvery: 10_000, kills: 60}
	}
	o.executed = make([][]atomic.Uint32, o.devices+spareDevices)
	for i := range o.executed {
		o.executed[i] = make([]atomic.Uint32, o.each)
	}
	var backends []*hostileBackend
	var endpoints []string
	for i := range 3 { // addresses that nobody else takes while a backend is down
		b := newHostileBackend(t, o, fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), i+1))
		backends = append(backends, b)
		endpoints = append(endpoints, b.addr)
	}
	doc := testDoc()
	doc.Heartbeat.Interval = 0 // these devices have other things to do
	w := newWorld(t, doc)
	once := dynamic.Service{Endpoints: endpoints, Timeout: dynamic.Duration(timeout)}
	again := once
	again.Idempotent = true
	w.doc.Services = map[string]dynamic.Service{"once": once, "again": again}
	cfg := w.config("gw-1")
	cfg.TLS.Mode = tlsOff
	reg := prometheus.NewRegistry()
	s, err := New(cfg, service.Deps{Log: zap.NewNop(), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	wantLinks := func(when string) {
		t.Helper()
		eventually(t, when+", each backend has the links of one service, not of two", func() bool {
			for _, b := range backends {
				if b.links() != 2 {
					return false
				}
			}
			return true
		})
	}
	wantLinks("before")

	began := time.Now()
	faults := o.run(t, s.Addr(), backends)
	took := time.Since(began)
	// A kill may have ended each request that was to be answered too late.
	devices := o.devices
	for ; devices < o.devices+spareDevices && (!o.sawFailure(wire.CodeBackendTimeout) || dropped(t, reg, "late") == 0); devices++ {
		conn, err := net.DialTimeout("tcp", s.Addr(), patience)
		if err = o.ask(conn, err, devices); err != nil {
			faults = append(faults, err)
		}
	}
	for i, err := range faults {
		if i == 10 {
			t.Errorf("and %d devices more", len(faults)-i)
			break
		}
		t.Error(err)
	}
	requests := int64(devices * o.each)
	if n := o.ended.Load(); n != requests {
		t.Errorf("%d requests ended, want %d", n, requests)
	}
	o.checkFailures(t)
	for device := range o.executed {
		for n := range o.executed[device] {
			if times := o.executed[device][n].Load(); times > 1 {
				t.Errorf("request %d of device %d, which is not to be repeated, was sent %d times", n, device, times)
			}
		}
	}
	for _, reason := range []string{"late", "unknown"} {
		eventually(t, "answers are dropped as "+reason, func() bool { return dropped(t, reg, reason) > 0 })
	}
	wantLinks("after")
	if o.answered.Load() < requests/2 {
		return false
	}
	t.Attr("requests", fmt.Sprintf("%d of %d devices in %v", requests, o.devices, took.Round(time.Second/10)))
	t.Attr("answered_with_their_body", fmt.Sprintf("%d, none with another's", o.answered.Load()))
	t.Attr("device_connections_lost", fmt.Sprintf("%d of %d", len(faults), o.devices))
	return true
}

// dropped is how many answers the gateway has dropped for that reason.
func dropped(t *testing.T, reg *prometheus.Registry, reason string) (n float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "goshield_backend_dropped_answers_total" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "reason" && l.GetValue() == reason {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

// run has all devices ask, and backends die meanwhile. It returns what went wrong.
func (o *ordeal) run(t *testing.T, addr string, backends []*hostileBackend) (faults []error) {
	var mu sync.Mutex
	var asking sync.WaitGroup
	dialing := make(chan struct{}, 32)
	for device := range o.devices {
		asking.Go(func() { // ends with its last answer, or its connection
			dialing <- struct{}{}
			conn, err := net.DialTimeout("tcp", addr, patience)
			<-dialing
			if err = o.ask(conn, err, device); err != nil {
				mu.Lock()
				defer mu.Unlock()
				faults = append(faults, err)
			}
		})
	}
	ended := make(chan struct{})
	go func() { asking.Wait(); close(ended) }()
	o.killAll(t, backends, ended)
	<-ended
	return faults
}

// spareDevices ask one after the other, when no backend is killed any more, as long as something was not seen yet.
const spareDevices = 10

// ask is one device from its first request to its last answer, if it could be dialled.
func (o *ordeal) ask(conn net.Conn, err error, device int) error {
	if err == nil {
		err = errors.Join(o.torment(conn, device), conn.Close())
	}
	if err != nil {
		return fmt.Errorf("device %d: %w", device, err)
	}
	return nil
}

func (o *ordeal) sawFailure(code wire.Code) bool {
	_, seen := o.failed.Load(code)
	return seen
}

// killAll kills a backend each time that another part of the requests has ended.
func (o *ordeal) killAll(t *testing.T, backends []*hostileBackend, ended <-chan struct{}) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	part := int64(o.devices*o.each) / int64(o.kills+1)
	for i := range o.kills {
		for o.ended.Load() < part*int64(i+1) {
			select {
			case <-tick.C:
			case <-ended:
				t.Errorf("%d kills, want %d: the devices ended first", i, o.kills)
				return
			}
		}
		b := backends[i%len(backends)]
		b.kill()
		time.Sleep(50 * time.Millisecond) // the others serve meanwhile
		b.restart(t)
	}
}

// checkFailures wants errors of those kinds, each of them, and no others.
func (o *ordeal) checkFailures(t *testing.T) {
	t.Helper()
	o.failed.Range(func(code, count any) bool {
		n := count.(*atomic.Int64).Load()
		t.Logf("%d requests ended with %s", n, code)
		switch code {
		case wire.CodeBackendUnavailable, wire.CodeBackendTimeout, wire.CodeBackendError:
		default:
			t.Errorf("%d requests ended with %s", n, code)
		}
		return true
	})
	for _, code := range []wire.Code{wire.CodeBackendUnavailable, wire.CodeBackendTimeout, wire.CodeBackendError} {
		if !o.sawFailure(code) {
			t.Errorf("no request ended with %s: this tests little", code)
		}
	}
}
