package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/backend"
	"github.com/goshield/goshield/services/gateway/registry"
)

// The kit: a server whose clock is the test's (testing/synctest), whose connections are pipes, and
// whose neighbours are fakes. What needs real sockets is in the tests that say so.

// long asks for the full sizes and the promised times: scripts/test long sets it.
var long = os.Getenv("GOSHIELD_TEST_LONG") != ""

func TestMain(m *testing.M) {
	if runAsChild() {
		return
	}
	// net/http lingers for half a second after it has refused a body.
	redistest.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// testDoc is the dynamic document of most tests: no rotation by chance, no limits.
func testDoc() dynamic.Document {
	doc := dynamic.Default()
	doc.DeviceLimit.Rate = 0
	doc.Token.RotateProbability = 0
	doc.Services = map[string]dynamic.Service{"echo": {Endpoints: []string{"127.0.0.1:1"}}}
	return doc
}

// rig is a server and its fakes.
type rig struct {
	*Server
	auth    *fakeAuth
	router  *fakeRouter
	nodes   *fakeDirectory
	metrics *prometheus.Registry
}

// bubble runs f in a synctest bubble with a server that has no listeners.
func bubble(t *testing.T, doc dynamic.Document, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, doc)
		defer r.Kill()
		f(t, r)
	})
}

func newRig(t *testing.T, doc dynamic.Document) *rig {
	t.Helper()
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	cfg.TLS.Mode, cfg.Push, cfg.WebSocket, cfg.MQTT = tlsOff, "", "", ""
	cfg.Node, cfg.Defaults = "gw-1", doc
	s, err := newServer(cfg, service.Deps{Log: zaptest.NewLogger(t, zaptest.Level(zapLevel)), Metrics: reg}, defaultTimings())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Server: s, auth: newFakeAuth(doc.Token), router: newFakeRouter(), nodes: &fakeDirectory{}, metrics: reg}
	s.registry = r.nodes
	s.use(r.auth, r.router)
	if err := s.apply(doc, 0); err != nil {
		t.Fatal(err)
	}
	s.startWork()
	return r
}

// connect is a new device connection, not yet introduced.
func (r *rig) connect(t *testing.T) *device {
	t.Helper()
	here, there := net.Pipe()
	r.accepted(there, deviceKind)
	return newDevice(t, here)
}

// stalled is a device that reads its WELCOME and nothing after it.
func (r *rig) stalled(t *testing.T, id wire.ClientID) *device {
	t.Helper()
	here, there := net.Pipe()
	r.accepted(there, deviceKind)
	t.Cleanup(func() { _ = here.Close() })
	d := &device{t: t, conn: here, client: id, version: wire.Version1}
	d.send(&wire.Hello{ClientID: id})
	f, err := wire.NewReader(here, wire.MaxPayload).Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Unmarshal(f.Version, f.Payload, &d.welcome); err != nil {
		t.Fatal(err)
	}
	d.token = d.welcome.Token
	return d
}

// enrolled is a device that has been welcomed with a new token.
func (r *rig) enrolled(t *testing.T, id wire.ClientID) *device {
	t.Helper()
	d := r.connect(t)
	d.hello(id, wire.Token{})
	return d
}

// closed is how many connections were closed for that reason, once all is quiet.
func (r *rig) closed(reason string) float64 {
	synctest.Wait()
	return testutil.ToFloat64(r.Server.metrics.closed.WithLabelValues(reason))
}

// device is a device as tests play it. Its methods end the test when what happens is not what
// they say.
type device struct {
	t       testing.TB
	conn    net.Conn
	frames  chan wire.Frame // closed at the end of the stream; payloads are copies
	ended   error           // after frames is closed
	asked   uint32          // ids of requests that p99 made
	client  wire.ClientID
	token   wire.Token
	welcome wire.Welcome
	version byte // of its frames
}

// newDevice reads from conn all the time, as devices do; see stalled for one that does not.
func newDevice(t testing.TB, conn net.Conn) *device {
	t.Helper()
	d := &device{t: t, conn: conn, frames: make(chan wire.Frame, 4096), version: wire.Version1}
	done := make(chan struct{})
	go d.read(done)
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return d
}

func (d *device) read(done chan struct{}) {
	defer close(done)
	defer close(d.frames)
	r := wire.NewReader(d.conn, wire.MaxPayload)
	for {
		f, err := r.Next()
		if err != nil {
			d.ended = err
			return
		}
		f.Payload = append([]byte(nil), f.Payload...)
		d.frames <- f
	}
}

// patience is longer than anything that is to happen; in a bubble it costs nothing.
const patience = 2 * time.Minute

func (d *device) send(m wire.Message) {
	d.t.Helper()
	frame, err := wire.Append(nil, d.version, m)
	if err != nil {
		d.t.Fatal(err)
	}
	d.write(frame)
}

func (d *device) write(b []byte) {
	d.t.Helper()
	_ = d.conn.SetWriteDeadline(time.Now().Add(patience))
	defer func() { _ = d.conn.SetWriteDeadline(time.Time{}) }()
	if _, err := d.conn.Write(b); err != nil {
		d.t.Fatalf("write to the gateway: %v", err)
	}
}

// next is the gateway's next frame.
func (d *device) next() (wire.Frame, bool) {
	d.t.Helper()
	select {
	case f, ok := <-d.frames:
		return f, ok
	case <-time.After(patience):
		d.t.Fatal("the gateway sent nothing, want a frame or the end")
		return wire.Frame{}, false
	}
}

// want takes the next frame, which must be m's type, into m.
func (d *device) want(m wire.Message) {
	d.t.Helper()
	f, ok := d.next()
	if !ok {
		d.t.Fatalf("connection ended (%v), want %s", d.ended, m.Type())
	}
	if f.Type != m.Type() {
		d.t.Fatalf("got %s %s, want %s", f.Type, f.Payload, m.Type())
	}
	if err := wire.Unmarshal(f.Version, f.Payload, m); err != nil {
		d.t.Fatalf("parse %s: %v", f.Type, err)
	}
}

// wantError takes an ERROR of that code.
func (d *device) wantError(code wire.Code) *wire.Error {
	d.t.Helper()
	var e wire.Error
	d.want(&e)
	if e.Code != code {
		d.t.Fatalf("got error %v, want %s", &e, code)
	}
	return &e
}

// wantEnd wants the stream to end without a further frame.
func (d *device) wantEnd() {
	d.t.Helper()
	if f, ok := d.next(); ok {
		d.t.Fatalf("got %s %s, want the end of the connection", f.Type, f.Payload)
	}
	if !errors.Is(d.ended, io.EOF) && !errors.Is(d.ended, io.ErrClosedPipe) {
		d.t.Fatalf("connection ended with %v, want a clean end", d.ended)
	}
}

// wantClosed wants an ERROR of that code that closes, and then the end.
func (d *device) wantClosed(code wire.Code) *wire.Error {
	d.t.Helper()
	e := d.wantError(code)
	if !e.Close {
		d.t.Fatalf("error %v says close: false, want true", e)
	}
	d.wantEnd()
	return e
}

// quiet wants nothing to come for so long.
func (d *device) quiet(span time.Duration) {
	d.t.Helper()
	select {
	case f, ok := <-d.frames:
		if ok {
			d.t.Fatalf("got %s %s within %v, want nothing", f.Type, f.Payload, span)
		}
		d.t.Fatalf("connection ended (%v) within %v, want it to stay", d.ended, span)
	case <-time.After(span):
	}
}

// hello introduces the device and takes WELCOME; a zero token enrols.
func (d *device) hello(id wire.ClientID, token wire.Token) {
	d.t.Helper()
	d.client = id
	d.send(&wire.Hello{ClientID: id, Token: token})
	d.want(&d.welcome)
	d.token = d.welcome.Token
}

// request sends a REQUEST to the echo service.
func (d *device) request(id uint32, body string) {
	d.t.Helper()
	d.send(&wire.Request{ID: id, Token: d.token, Service: "echo", Body: []byte(body)})
}

// roundTrip sends a REQUEST and wants its echo.
func (d *device) roundTrip(id uint32) {
	d.t.Helper()
	body := fmt.Sprintf(`{"n":%d}`, id)
	d.request(id, body)
	var resp wire.Response
	d.want(&resp)
	if resp.ID != id || string(resp.Body) != body {
		d.t.Fatalf("response %d %s, want %d %s", resp.ID, resp.Body, id, body)
	}
}

// beat sends a HEARTBEAT and takes its ack.
func (d *device) beat() wire.HeartbeatAck {
	d.t.Helper()
	d.send(&wire.Heartbeat{Token: d.token})
	var ack wire.HeartbeatAck
	d.want(&ack)
	return ack
}

func clientID(n byte) (id wire.ClientID) {
	for i := range id {
		id[i] = n
	}
	return id
}

// fakeRouter answers requests itself: with their own body, unless they are held.
type fakeRouter struct {
	mu   sync.Mutex
	hold bool
	held []heldRequest
	sent int
	err  *wire.Error // every answer; nil: the echo
}

type heldRequest struct {
	req  backend.Request
	w    backend.Waiter
	tag  uint32
	body []byte
}

func newFakeRouter() *fakeRouter { return &fakeRouter{} }

func (r *fakeRouter) Send(req backend.Request, w backend.Waiter, tag uint32) backend.Handle {
	body := append([]byte(nil), req.Body...)
	r.mu.Lock()
	r.sent++
	hold, err := r.hold, r.err
	if hold {
		r.held = append(r.held, heldRequest{req, w, tag, body})
	}
	r.mu.Unlock()
	switch {
	case hold:
	case err != nil:
		w.Done(tag, backend.Reply{Err: err})
	case req.Service != "echo":
		w.Done(tag, backend.Reply{Err: wire.Errorf(wire.CodeNoSuchService, "no service of that name")})
	default:
		w.Done(tag, backend.Reply{Body: body})
	}
	return backend.Handle{}
}

// holding makes the router keep requests from now on.
func (r *fakeRouter) holding(hold bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = hold
}

// answerAll echoes every request that is held.
func (r *fakeRouter) answerAll() int {
	r.mu.Lock()
	held := r.held
	r.held = nil
	r.mu.Unlock()
	for _, h := range held {
		h.w.Done(h.tag, backend.Reply{Body: h.body})
	}
	return len(held)
}

func (r *fakeRouter) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent
}

func (r *fakeRouter) Apply(map[string]dynamic.Service) error { return nil }
func (r *fakeRouter) Shutdown(context.Context) error         { r.answerAll(); return nil }

// fakeDirectory knows what tests tell it.
type fakeDirectory struct {
	mu      sync.Mutex
	owners  map[wire.ClientID]registry.Owner
	nodes   map[string]registry.Node
	records map[wire.ClientID]registry.Record
}

func (d *fakeDirectory) Locate(_ context.Context, id wire.ClientID) (registry.Owner, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if o, ok := d.owners[id]; ok {
		return o, nil
	}
	return registry.Owner{}, registry.ErrNotConnected
}

func (d *fakeDirectory) Lookup(_ context.Context, name string) (registry.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, ok := d.nodes[name]; ok {
		return n, nil
	}
	return registry.Node{}, registry.ErrNotConnected
}

func (d *fakeDirectory) Nodes(context.Context) ([]registry.NamedNode, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []registry.NamedNode
	for _, name := range slices.Sorted(maps.Keys(d.nodes)) {
		list = append(list, registry.NamedNode{Name: name, Node: d.nodes[name]})
	}
	return list, nil
}

func (d *fakeDirectory) Records(_ context.Context, ids []wire.ClientID) ([]registry.Record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]registry.Record, len(ids))
	for i, id := range ids {
		list[i] = d.records[id]
	}
	return list, nil
}

func zapNop() *zap.Logger { return zap.NewNop() }

func (d *fakeDirectory) setRecord(id wire.ClientID, rec registry.Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.records == nil {
		d.records = make(map[wire.ClientID]registry.Record)
	}
	d.records[id] = rec
}
