package gateway

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/sdk/wire"
)

// WebSocket (docs/PROTOCOL.md §1): the device protocol's frames, one a binary message, for browsers and
// mini-programs, which can speak nothing else.

const (
	websocketPath        = "/device"
	websocketSubprotocol = "goshield"
)

// web is the HTTP server of the WebSocket listener. It is given connections
// whose TLS is done. A connection has one request, and timings.handshake from then on to become
// a session, whatever it sends.
type web struct {
	srv     *Server
	origins []string
	http    *http.Server
	ready   chan net.Conn
	ended   chan struct{}
	once    sync.Once
	addr    net.Addr
}

func newWeb(srv *Server, origins []string, page bool, addr net.Addr) *web {
	w := &web{srv: srv, origins: origins, ready: make(chan net.Conn), ended: make(chan struct{}), addr: addr}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+websocketPath, w.upgrade)
	if page {
		mux.HandleFunc("GET /{$}", w.page)
	}
	w.http = admin.NewHTTPServer(mux, srv.log.Named("websocket"))
	w.http.SetKeepAlivesEnabled(false)
	w.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, webConnKey{}, c)
	}
	return w
}

type webConnKey struct{}

// serve answers upgrades until close.
func (w *web) serve() {
	defer w.srv.work.Done()
	_ = w.http.Serve(w) // always an error that says it was closed
}

// take hands a connection to the server.
func (w *web) take(conn net.Conn, sock *socket) { w.hand(&webConn{Conn: conn, sock: sock}) }

// turnAway has the server answer e to whatever the connection asks for. It returns when it is closed.
func (w *web) turnAway(conn net.Conn, sock *socket, e *wire.Error) {
	c := &webConn{Conn: conn, sock: sock, refusal: e, gone: make(chan struct{})}
	w.hand(c)
	<-c.gone
}

func (w *web) hand(c *webConn) {
	c.deadline = time.AfterFunc(w.srv.timings.handshake, func() { _ = c.end() })
	select {
	case w.ready <- c:
	case <-w.ended:
		_ = c.Close() // nobody will serve it
	}
}

// Accept, Close and Addr implement net.Listener.
func (w *web) Accept() (net.Conn, error) {
	select {
	case c := <-w.ready:
		return c, nil
	case <-w.ended:
		return nil, net.ErrClosed
	}
}

func (w *web) Close() error {
	w.once.Do(func() { close(w.ended) })
	return nil
}

func (w *web) Addr() net.Addr { return w.addr }

// close ends the server and its connections that have not become sessions.
func (w *web) close() { _ = w.http.Close() }

// upgrade makes a session of a request.
func (w *web) upgrade(rw http.ResponseWriter, r *http.Request) {
	conn, ok := r.Context().Value(webConnKey{}).(*webConn)
	if !ok {
		http.Error(rw, "no connection", http.StatusInternalServerError)
		return
	}
	if !offers(r.Header, websocketSubprotocol) {
		http.Error(rw, "the subprotocol "+websocketSubprotocol+" must be offered", http.StatusBadRequest)
		return
	}
	wire := newWebWire(conn.Conn, conn.sock)
	ws, err := websocket.Accept(hijacking{rw, wire}, r, &websocket.AcceptOptions{
		Subprotocols: []string{websocketSubprotocol}, OriginPatterns: w.origins, CompressionMode: websocket.CompressionDisabled,
		OnPingReceived: func(_ context.Context, payload []byte) bool { wire.pinged(payload); return false },
		OnPongReceived: func(_ context.Context, payload []byte) { wire.ponged(payload) },
	})
	if err != nil {
		w.srv.log.Debug("upgrade refused", zap.Error(err)) // Accept has answered
		return
	}
	if conn.refusal != nil {
		refuseUpgraded(ws, conn.refusal)
		_ = conn.Close() // the library has closed what is beneath, of which conn does not hear
		return
	}
	if !conn.take() {
		_ = ws.CloseNow() // too late: it is closed
		return
	}
	w.srv.startSession(conn.sock, newWebStream(ws, wire))
}

// refuseUpgraded ends a connection with e: what HTTP answers, scripts in a browser never see. It ends with the connection,
// which has its deadline.
func refuseUpgraded(ws *websocket.Conn, e *wire.Error) {
	frame, err := wire.Append(nil, wire.Version1, e)
	if err == nil {
		err = ws.Write(context.Background(), websocket.MessageBinary, frame)
	}
	if err == nil {
		_ = ws.Close(websocket.StatusTryAgainLater, "") // or the peer has gone
	}
	_ = ws.CloseNow() // if it is not closed
}

// page serves the page, unless the connection is one too many.
func (w *web) page(rw http.ResponseWriter, r *http.Request) {
	if conn, ok := r.Context().Value(webConnKey{}).(*webConn); ok && conn.refusal != nil {
		rw.Header().Set("Retry-After", strconv.Itoa(int(conn.refusal.RetryAfter.Round(time.Second).Seconds())))
		http.Error(rw, conn.refusal.Error(), http.StatusServiceUnavailable)
		return
	}
	servePage(rw, r)
}

// offers reports whether a client offers a subprotocol (RFC 6455 §11.3.4).
func offers(h http.Header, subprotocol string) bool {
	for _, list := range h.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(list, ",") {
			if strings.TrimSpace(name) == subprotocol {
				return true
			}
		}
	}
	return false
}

// webConn is a connection in the hands of the HTTP server, which closes it
// unless a session has taken it.
type webConn struct {
	net.Conn // *tls.Conn, or sock itself
	sock     *socket
	refusal  *wire.Error   // it is over a cap, and told so; nil: it is not
	gone     chan struct{} // closed at the end of one that is refused
	deadline *time.Timer   // closes it; static before the server has it
	taken    atomic.Bool
	closed   atomic.Bool
}

// take makes the connection a session's; false if its time is over.
func (c *webConn) take() bool {
	if !c.deadline.Stop() {
		return false
	}
	c.taken.Store(true)
	return true
}

// Close implements net.Conn.
func (c *webConn) Close() error {
	c.deadline.Stop()
	return c.end()
}

func (c *webConn) end() error {
	if c.closed.Swap(true) {
		return nil
	}
	switch {
	case c.refusal != nil:
		defer close(c.gone)
	case !c.taken.Load():
		c.sock.srv.metrics.handshaking.Dec()
		c.sock.srv.metrics.closed.WithLabelValues(closedHandshake).Inc()
	}
	return c.sock.Close()
}
