package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// browser is a device on WebSocket.
type browser struct {
	t    testing.TB
	conn *websocket.Conn
}

// websocket dials; status is the answer's where it is no upgrade.
func (w *world) websocket(s *Server, change func(*websocket.DialOptions)) (conn *websocket.Conn, status int, err error) {
	transport := &http.Transport{TLSClientConfig: w.clientTLS()}
	w.t.Cleanup(transport.CloseIdleConnections)
	opts := &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}, Subprotocols: []string{websocketSubprotocol}}
	if change != nil {
		change(opts)
	}
	scheme := "wss://"
	if s.tls == nil {
		scheme = "ws://"
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, scheme+s.WebSocketAddr()+websocketPath, opts)
	if resp != nil && resp.Body != nil {
		defer resp.Body.Close()
		status = resp.StatusCode
	}
	return conn, status, err
}

func (w *world) browser(s *Server) *browser {
	w.t.Helper()
	conn, _, err := w.websocket(s, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.CloseNow() })
	if conn.Subprotocol() != websocketSubprotocol {
		w.t.Errorf("subprotocol = %q, want %s", conn.Subprotocol(), websocketSubprotocol)
	}
	return &browser{t: w.t, conn: conn}
}

func (b *browser) write(kind websocket.MessageType, data []byte) {
	b.t.Helper()
	if err := b.conn.Write(b.t.Context(), kind, data); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) send(m wire.Message) {
	b.t.Helper()
	data, err := wire.Append(nil, wire.Version1, m)
	if err != nil {
		b.t.Fatal(err)
	}
	b.write(websocket.MessageBinary, data)
}

// want takes the next message, which must be one frame of m's type.
func (b *browser) want(m wire.Message) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	kind, data, err := b.conn.Read(ctx)
	if err != nil {
		b.t.Fatalf("read: %v, want %s", err, m.Type())
	}
	h, err := wire.ParseHeader(data, wire.MaxPayload)
	if err != nil || kind != websocket.MessageBinary || len(data) != wire.HeaderSize+int(h.Length) {
		b.t.Fatalf("message %q, want one binary frame", data)
	}
	if h.Type != m.Type() {
		b.t.Fatalf("got %s %s, want %s", h.Type, data[wire.HeaderSize:], m.Type())
	}
	if err := wire.Unmarshal(h.Version, data[wire.HeaderSize:], m); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) wantClosed(code wire.Code) {
	b.t.Helper()
	var e wire.Error
	b.want(&e)
	if e.Code != code || !e.Close {
		b.t.Fatalf("error = %+v, want %s that closes", &e, code)
	}
	_, _, err := b.conn.Read(b.t.Context())
	if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		b.t.Fatalf("end = %v, want a normal closure", err)
	}
}

func (b *browser) hello(id wire.ClientID) wire.Token {
	b.t.Helper()
	b.send(&wire.Hello{ClientID: id})
	var w wire.Welcome
	b.want(&w)
	return w.Token
}

func TestDeviceOnWebSocket(t *testing.T) {
	for _, mode := range []string{tlsOn, tlsOff} {
		t.Run("tls "+mode, func(t *testing.T) {
			w := newWorld(t, testDoc())
			s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.TLS.Mode = mode })
			w.settled(s)
			b := w.browser(s)
			token := b.hello(clientID(1))
			for id := range uint32(3) {
				b.send(&wire.Request{ID: id, Token: token, Service: "echo", Body: []byte(`{"a":[1,2]}`)})
				var resp wire.Response
				b.want(&resp)
				if resp.ID != id || string(resp.Body) != `{"a":[1,2]}` {
					t.Errorf("response = %d %s, want %d and the body", resp.ID, resp.Body, id)
				}
			}
			b.send(&wire.Heartbeat{Token: token})
			var ack wire.HeartbeatAck
			b.want(&ack)
			if status, _ := api(t, s, http.MethodPost, deviceOf(clientID(1), "/messages"), `{"service":"news","body":"x"}`); status != http.StatusAccepted {
				t.Errorf("push = %d, want 202", status)
			}
			var p wire.Push
			b.want(&p)
			b.send(&wire.Bye{})
			_, _, err := b.conn.Read(t.Context())
			if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
				t.Errorf("end after BYE = %v, want a normal closure", err)
			}
			eventually(t, "the connection is forgotten", func() bool { return testutil.ToFloat64(s.metrics.active) == 0 })
		})
	}
}

func TestWebSocketRefusals(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	beat := frame(wire.TypeHeartbeat, `{}`)
	hello := frame(wire.TypeHello, `{"client_id":"`+clientID(1).String()+`"}`)
	for _, tt := range []struct {
		name string
		send func(b *browser)
		want wire.Code
	}{
		{"text", func(b *browser) { b.write(websocket.MessageText, hello) }, wire.CodeBadFrame},
		{"two frames in a message", func(b *browser) { b.write(websocket.MessageBinary, append(append([]byte(nil), hello...), beat...)) }, wire.CodeBadFrame},
		{"half a frame in a message", func(b *browser) { b.write(websocket.MessageBinary, hello[:20]) }, wire.CodeBadFrame},
		{"half a header", func(b *browser) { b.write(websocket.MessageBinary, hello[:3]) }, wire.CodeBadFrame},
		{"empty message", func(b *browser) { b.write(websocket.MessageBinary, nil) }, wire.CodeBadFrame},
		{"over the limit", func(b *browser) {
			b.write(websocket.MessageBinary, append([]byte{1, 1, 0xff, 0xff}, make([]byte, 0xffff)...))
		}, wire.CodeFrameTooLarge},
		{"request before hello", func(b *browser) { b.write(websocket.MessageBinary, beat) }, wire.CodeAuthRequired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := w.browser(s)
			b.t = t
			tt.send(b)
			b.wantClosed(tt.want)
		})
	}
}

// A message may come in fragments; the frame is the same.
func TestWebSocketFragments(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	b := w.browser(s)
	writer, err := b.conn.Writer(t.Context(), websocket.MessageBinary)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range frame(wire.TypeHello, `{"client_id":"`+clientID(1).String()+`"}`) {
		if _, err := writer.Write([]byte{part}); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	var welcome wire.Welcome
	b.want(&welcome)
}

func TestWebSocketOrigins(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.WebSocketOrigins = []string{"*.example.com"} })
	for _, tt := range []struct {
		origin string
		ok     bool
	}{
		{"", true}, // no browser
		{"https://" + s.WebSocketAddr(), true},
		{"https://app.example.com", true},
		{"https://example.org", false},
	} {
		conn, status, err := w.websocket(s, func(o *websocket.DialOptions) {
			if tt.origin != "" {
				o.HTTPHeader = http.Header{"Origin": {tt.origin}}
			}
		})
		if (err == nil) != tt.ok {
			t.Errorf("origin %q: error = %v, want ok %v", tt.origin, err, tt.ok)
		}
		if err == nil {
			_ = conn.CloseNow()
		} else if status != http.StatusForbidden {
			t.Errorf("origin %q: status = %d, want 403", tt.origin, status)
		}
	}
	_, status, err := w.websocket(s, func(o *websocket.DialOptions) { o.Subprotocols = nil })
	if err == nil || status != http.StatusBadRequest {
		t.Errorf("without the subprotocol: error = %v, want status 400", err)
	}
}

// The page is there only where it is asked for; what it says of itself lets in nothing from elsewhere.
func TestWebSocketPage(t *testing.T) {
	w := newWorld(t, testDoc())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: w.clientTLS(), DisableKeepAlives: true}, Timeout: patience}
	get := func(s *Server, path string) (status int, header http.Header, body string) {
		t.Helper()
		resp, err := client.Get("https://" + s.WebSocketAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header, string(text)
	}
	plain := w.gateway("gw-1", nil)
	if status, _, _ := get(plain, "/"); status != http.StatusNotFound {
		t.Errorf("/ = %d where no page is configured, want 404", status)
	}
	s := w.gateway("gw-2", func(cfg *Config, _ *timings) { cfg.WebSocketPage = true })
	status, header, body := get(s, "/")
	if status != http.StatusOK || !strings.HasPrefix(header.Get("Content-Type"), "text/html") {
		t.Errorf("/ = %d %s, want a page", status, header.Get("Content-Type"))
	}
	policy := header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "script-src 'sha256-", "style-src 'sha256-"} {
		if !strings.Contains(policy, want) {
			t.Errorf("Content-Security-Policy = %q, want %s in it", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("Content-Security-Policy = %q, want nothing unsafe", policy)
	}
	for _, outside := range []string{"src=", "http://", "https://", "@import", "url("} {
		if strings.Contains(body, outside) {
			t.Errorf("the page has %q, want nothing from elsewhere", outside)
		}
	}
	if status, _, _ := get(s, "/other"); status != http.StatusNotFound {
		t.Errorf("/other = %d, want 404", status)
	}
	w.settled(s)
	b := w.browser(s) // and devices connect as ever
	b.hello(clientID(1))
}

// A proof on WebSocket is bound to 32 zero bytes: browsers cannot read the exporter.
func TestWebSocketProof(t *testing.T) {
	doc := testDoc()
	doc.Enrolment = dynamic.EnrolKey
	w := newWorld(t, doc)
	w.auth.needKey = true
	b := w.browser(w.gateway("gw-1", nil))
	b.send(&wire.Hello{ClientID: clientID(1)})
	var c wire.Challenge
	b.want(&c)
	b.send(&wire.Proof{Proof: wire.ProofOf(wire.DeviceKey(groupKey, clientID(1)), c.Nonce, [32]byte{}, clientID(1))})
	var welcome wire.Welcome
	b.want(&welcome)
}

// Where no channel binds a proof to its connection, the nonce alone does: each is another, and the proof for
// one is worth nothing on the next connection.
func TestProofIsGoodForOneChallenge(t *testing.T) {
	doc := testDoc()
	doc.Enrolment = dynamic.EnrolKey
	type talker interface {
		send(wire.Message)
		want(wire.Message)
	}
	for _, tt := range []struct {
		name    string
		connect func(*world, *Server) talker
	}{
		{"TCP", func(w *world, s *Server) talker { return w.dial(s) }},
		{"WebSocket", func(w *world, s *Server) talker { return w.browser(s) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, doc)
			w.auth.needKey = true
			s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.TLS.Mode = tlsOff })
			challenged := func() (talker, wire.Challenge) {
				d := tt.connect(w, s)
				d.send(&wire.Hello{ClientID: clientID(1)})
				var c wire.Challenge
				d.want(&c)
				return d, c
			}
			device, c := challenged()
			thief, another := challenged()
			if c.Nonce == another.Nonce || c.Nonce == [32]byte{} {
				t.Errorf("nonces = %x and %x, want two that differ", c.Nonce, another.Nonce)
			}
			proof := wire.Proof{Proof: wire.ProofOf(wire.DeviceKey(groupKey, clientID(1)), c.Nonce, [32]byte{}, clientID(1))}
			device.send(&proof)
			var welcome wire.Welcome
			device.want(&welcome)
			thief.send(&proof)
			var e wire.Error
			thief.want(&e)
			if e.Code != wire.CodeBadProof || !e.Close {
				t.Errorf("replayed proof: %+v, want bad_proof that closes", &e)
			}
		})
	}
}

// An HTTP client that upgrades nothing, and one that vanishes, leave nothing behind.
func TestWebSocketListenerForgets(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: w.clientTLS(), DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get("https://" + s.WebSocketAddr() + websocketPath)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if resp.StatusCode/100 != 4 || strings.Contains(string(body), testSecret) {
		t.Errorf("plain GET = %d, want 4xx", resp.StatusCode)
	}
	b := w.browser(s)
	b.hello(clientID(1))
	_ = b.conn.CloseNow()
	eventually(t, "every connection is forgotten", func() bool {
		s.sockets.mu.Lock()
		defer s.sockets.mu.Unlock()
		return len(s.sockets.all) == 0 && testutil.ToFloat64(s.metrics.handshaking) == 0 && testutil.ToFloat64(s.metrics.active) == 0
	})
}
