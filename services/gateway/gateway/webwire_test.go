package gateway

// What stands between the WebSocket library and its connection: interrupts, whole frames at once, deadlines, nothing left behind.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
)

// stutter is a connection whose reader is interrupted before each piece, and that notes what is written.
type stutter struct {
	net.Conn
	coming      []byte
	piece       int
	interrupted bool
	written     [][]byte
}

func (c *stutter) Read(p []byte) (int, error) {
	if c.interrupted {
		return 0, os.ErrDeadlineExceeded
	}
	if len(c.coming) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.piece)], c.coming)
	c.coming = c.coming[n:]
	c.interrupted = true
	return n, nil
}

func (c *stutter) Write(p []byte) (int, error) {
	c.written = append(c.written, bytes.Clone(p))
	return len(p), nil
}

func (c *stutter) Close() error { return nil }

func (c *stutter) SetReadDeadline(t time.Time) error {
	c.interrupted = !t.IsZero()
	return nil
}

// hijackable is what net/http gives a handler whose client sent something after its request.
type hijackable struct {
	*httptest.ResponseRecorder
	conn  net.Conn
	early []byte
}

func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	in := bufio.NewReader(io.MultiReader(bytes.NewReader(h.early), h.conn))
	_, _ = in.Peek(len(h.early))
	return h.conn, bufio.NewReadWriter(in, bufio.NewWriter(h.conn)), nil
}

// webStreamOver is a session's WebSocket on a connection. It counts pings.
func webStreamOver(t *testing.T, conn net.Conn, early []byte, pings *int) *webStream {
	t.Helper()
	cfg := DefaultConfig()
	cfg.TLS.Mode, cfg.Push = tlsOff, ""
	s, err := newServer(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}, defaultTimings())
	if err != nil {
		t.Fatal(err)
	}
	sock := &socket{Conn: conn, srv: s, kind: websocketKind}
	w := newWebWire(sock, sock)
	r := httptest.NewRequest(http.MethodGet, websocketPath, nil)
	for k, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} {
		r.Header.Set(k, v)
	}
	ws, err := websocket.Accept(hijacking{&hijackable{httptest.NewRecorder(), conn, early}, w}, r, &websocket.AcceptOptions{
		OnPingReceived: func(context.Context, []byte) bool { *pings++; return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	stream := newWebStream(ws, w)
	stream.attend(&session{srv: s, state: stateClosed}) // no timers
	return stream
}

// Whatever comes, in whatever pieces, a reader that is interrupted before each of them gets every message; and whenever an interrupt gets
// through to it, all that has come is in its hands.
func TestWebSocketReaderIsInterruptedBetweenMessages(t *testing.T) {
	payload := func(n int) []byte {
		return append([]byte{1, byte(wire.TypeHeartbeat), byte(n >> 8), byte(n)}, bytes.Repeat([]byte{'x'}, n)...)
	}
	var stream []byte
	var want [][]byte
	message := func(p []byte) {
		stream = append(stream, webSocketFrame(opBinary, p)...)
		want = append(want, p)
	}
	ping := webSocketFrame(opPing, []byte("ping"))
	message(payload(0))
	message(payload(100))
	stream = append(stream, ping...)
	message(payload(5000)) // longer than a buffer
	stream = append(stream, ping...)
	stream = append(stream, webSocketFrame(opPing, nil)...)
	p := payload(60) // a message in fragments, one of them empty, with pings between
	first, last := webSocketFrame(opBinary, p[:30]), webSocketFrame(opContinuation, p[30:])
	first[0] &^= finalFrame
	empty := []byte{opContinuation, maskedFrame, 0, 0, 0, 0}
	for _, part := range [][]byte{first, ping, empty, ping, last} {
		stream = append(stream, part...)
	}
	want = append(want, p)
	message(payload(126))
	const pings = 5

	for _, piece := range []int{1, 2, 3, 7, 100, 1000, 1 << 20} {
		for _, early := range []int{0, 1, 5, 150, 4096} {
			conn := &stutter{coming: stream[early:], piece: piece}
			pinged := 0
			s := webStreamOver(t, conn, stream[:early], &pinged)
			in := wire.NewReader(s, wire.MaxPayload)
			var interrupts int
			for i := 0; ; {
				f, err := in.Next()
				if errors.Is(err, os.ErrDeadlineExceeded) {
					if c := s.wire; c.r != c.w || c.left != 0 || c.within || in.Buffered() != 0 {
						t.Fatalf("pieces of %d, %d early: interrupted with %d bytes in the buffer, %d to come", piece, early, c.w-c.r, c.left)
					}
					interrupts++
					s.shrink()
					s.resume()
					continue
				}
				if err != nil {
					if i != len(want) || !errors.Is(err, io.EOF) {
						t.Errorf("pieces of %d, %d early: %v after %d messages, want the end after %d", piece, early, err, i, len(want))
					}
					break
				}
				if got := append([]byte{f.Version, byte(f.Type), byte(f.Length >> 8), byte(f.Length)}, f.Payload...); !bytes.Equal(got, want[i]) {
					t.Fatalf("pieces of %d, %d early: message %d = %d bytes, want %d", piece, early, i, len(got), len(want[i]))
				}
				i++
			}
			if pinged != pings {
				t.Errorf("pieces of %d, %d early: pings = %d, want %d", piece, early, pinged, pings)
			}
			if least := len(want) + pings - 2; piece == 1 && early <= 5 && interrupts < least { // two pings are inside a message
				t.Errorf("%d early: %d interrupts got through, want %d, one after each message and ping", early, interrupts, least)
			}
			for _, frame := range conn.written {
				if webFrameSize(frame) != uint64(len(frame)) {
					t.Errorf("a pong was written in pieces: %x", frame)
				}
			}
		}
	}
}

// A message leaves in one piece: one record, one packet.
func TestWebSocketMessageIsWrittenAtOnce(t *testing.T) {
	for _, n := range []int{0, 1, 8, 9, 10, 11, 12, 13, 100, 121, 122, 200, 5000, wire.MaxPayload} {
		conn := &stutter{}
		s := webStreamOver(t, conn, nil, new(int))
		frame := append([]byte{1, byte(wire.TypePush), byte(n >> 8), byte(n)}, make([]byte, n)...)
		if _, err := s.Write(append(bytes.Clone(frame), frame...)); err != nil {
			t.Fatal(err)
		}
		if len(conn.written) != 2 || !bytes.HasSuffix(conn.written[0], frame) || !bytes.Equal(conn.written[0], conn.written[1]) {
			t.Errorf("two frames with %d bytes: %d writes, want a message each", n, len(conn.written))
		}
		if s.wire.out != nil {
			t.Errorf("two frames with %d bytes: a buffer is kept", n)
		}
	}
}

// Who was told to go is not read from for ever, whatever the library makes of what he sends.
func TestWebSocketThatClosesReadsLittle(t *testing.T) {
	for name, flood := range map[string][]byte{
		"fragments": fragment(opContinuation, nil),
		"pings":     webSocketFrame(opPing, nil),
	} {
		t.Run(name, func(t *testing.T) {
			coming := append(fragment(opBinary, []byte{1}), bytes.Repeat(flood, 2*discardMax/len(flood))...)
			conn := &stutter{coming: coming, piece: 1 << 20}
			s := webStreamOver(t, conn, nil, new(int))
			if _, err := s.Read(make([]byte, 10)); !errors.Is(err, errLate) {
				t.Errorf("Read = %v, want %v", err, errLate)
			}
			if left := len(conn.coming); left < discardMax/2 {
				t.Errorf("%d bytes were not read, want %d and more", left, discardMax/2)
			}
		})
	}
}

// An interrupt that comes too late does not cut the closing handshake short.
func TestWebSocketGoodByeIsNotInterrupted(t *testing.T) {
	conn := &stutter{coming: webSocketFrame(opClose, []byte{3, 232}), piece: 1, interrupted: true}
	if err := webStreamOver(t, conn, nil, new(int)).CloseWrite(); err != nil {
		t.Errorf("CloseWrite = %v, want nil: the peer has answered", err)
	}
}

// Lengths that no frame can have are the library's to refuse, and run over nothing here.
func TestWebFrameSize(t *testing.T) {
	for _, tt := range []struct {
		frame []byte
		want  uint64
	}{
		{nil, 0},
		{[]byte{0x82}, 0},
		{[]byte{0x82, 0}, 2},
		{[]byte{0x82, 0x80}, 6},
		{[]byte{0x82, 125}, 127},
		{[]byte{0x82, 126, 1}, 0},
		{[]byte{0x82, 0xfe, 1, 0}, 264},
		{[]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0}, 0},
		{[]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}, 65546},
		{[]byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 14 + 1<<63 - 1},
	} {
		if got := webFrameSize(tt.frame); got != tt.want {
			t.Errorf("size of %x = %d, want %d", tt.frame, got, tt.want)
		}
	}
}

// Part of a WebSocket frame is waited for no longer than part of one of ours.
func TestPartOfAWebSocketFrameHasADeadline(t *testing.T) {
	whole := webSocketFrame(opBinary, frame(wire.TypeHeartbeat, `{}`))
	fragment := fragment(opBinary, frame(wire.TypeHeartbeat, `{}`))
	for _, tt := range []struct {
		name string
		sent []byte
		ping bool // now and then, in vain
	}{
		{"part of a header", whole[:1], false},
		{"part of a message", whole[:8], false},
		{"part of a ping", webSocketFrame(opPing, []byte("x"))[:4], false},
		{"part of a ping's payload", webSocketFrame(opPing, []byte("xyz"))[:7], false},
		{"a ping without its payload", webSocketFrame(opPing, []byte("xyz"))[:6], false},
		{"part of a good-bye", webSocketFrame(opClose, []byte{3, 232})[:7], false},
		{"part of a ping, inside a message", append(bytes.Clone(fragment), webSocketFrame(opPing, []byte("xyz"))[:7]...), false},
		{"a fragment", fragment, false},
		{"a fragment, and pings", fragment, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			webBubble(t, testDoc(), func(t *testing.T, r *rig) {
				d, end := r.connectWeb(t)
				d.hello(clientID(1), wire.Token{})
				time.Sleep(5 * time.Second)
				ping := webSocketFrame(opPing, []byte("a")) // which is of no weight when it is complete
				for _, part := range [][]byte{ping[:3], ping[3:]} {
					if _, err := end.Conn.Write(part); err != nil {
						t.Fatal(err)
					}
				}
				end.wantPong(t, "a")
				time.Sleep(15 * time.Second)
				d.beat()
				begun := time.Now()
				if _, err := end.Conn.Write(tt.sent); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					if tt.ping {
						end.ping(t, "b")
					}
					time.Sleep(3 * time.Second)
				}
				d.wantClosed(wire.CodeIdleTimeout)
				if took := time.Since(begun); took < 10*time.Second || took > 11*time.Second {
					t.Errorf("closed after %v, want after 10 s", took)
				}
				if n := r.closed(closedFrameTimeout); n != 1 {
					t.Errorf("closed %v with %q, want 1", n, closedFrameTimeout)
				}
			})
		})
	}
}

// RELIABILITY row 10: a device that does not read has its 10 s, whether or not it pings meanwhile. (The library would close it after 5.)
func TestWebSocketThatPingsAndDoesNotRead(t *testing.T) {
	webBubble(t, testDoc(), func(t *testing.T, r *rig) {
		d, conn := r.stalledWeb(t, clientID(1))
		d.send(&wire.Heartbeat{Token: d.token}) // its answer is not taken
		var pings sync.WaitGroup
		defer pings.Wait()
		pings.Go(func() { // until the connection ends
			for err := error(nil); err == nil; time.Sleep(time.Second) {
				_, err = conn.Write(webSocketFrame(opPing, []byte("x")))
			}
		})
		r.wantWriteStall(t, clientID(1))
	})
}

// A device that takes nothing but sends pings, as many as it can, gathers no more pongs than it may have answers.
func TestPongsAreBounded(t *testing.T) {
	webBubble(t, testDoc(), func(t *testing.T, r *rig) {
		_, conn := r.stalledWeb(t, clientID(1))
		for range 2 * outboundLimit / longestPing {
			if _, err := conn.Write(webSocketFrame(opPing, bytes.Repeat([]byte("x"), longestPing))); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		ses := r.table.find(clientID(1))
		ses.mu.Lock()
		waiting := ses.out.bytes
		ses.mu.Unlock()
		if waiting < outboundLimit/2 || waiting > outboundLimit+wire.HeaderSize+longestPing {
			t.Errorf("%d bytes of pongs wait, want at most %d and one more", waiting, outboundLimit)
		}
	})
}

// The time for which the gateway does not read is not the frame's.
func TestPingThatWaitsTakesNoTimeOfItsMessage(t *testing.T) {
	doc := testDoc()
	doc.DeviceLimit.Rate, doc.DeviceLimit.Burst, doc.DeviceLimit.OnLimit = 0.06, 1, dynamic.LimitWait
	webBubble(t, doc, func(t *testing.T, r *rig) {
		d, end := r.connectWeb(t)
		d.hello(clientID(1), wire.Token{})
		d.beat() // the last token
		beat, err := wire.Append(nil, wire.Version1, &wire.Heartbeat{Token: d.token})
		if err != nil {
			t.Fatal(err)
		}
		first, last := webSocketFrame(opBinary, beat[:10]), webSocketFrame(opContinuation, beat[10:])
		first[0] &^= finalFrame
		for _, part := range [][]byte{first, webSocketFrame(opPing, nil)} {
			if _, err := end.Conn.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		ses := r.table.find(d.client)
		time.Sleep(20 * time.Second) // the ping waits for 17
		ses.Expire(r.now())
		if _, err := end.Conn.Write(last); err != nil {
			t.Fatal(err)
		}
		var ack wire.HeartbeatAck
		d.want(&ack)
	})
}

// A connection that ends without WebSocket's good-bye is forgotten by everything.
func TestWebSocketIsCollected(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	var left []weak.Pointer[websocket.Conn]
	for i := range byte(3) {
		d := w.dialWeb(s)
		d.hello(clientID(i), wire.Token{})
		left = append(left, weak.Make(s.table.find(d.client).conn.(*webStream).ws))
		_ = d.conn.Close()
	}
	eventually(t, "they have ended", func() bool { return testutil.ToFloat64(s.metrics.closed.WithLabelValues(closedEOF)) == 3 })
	eventually(t, "they are collected", func() bool {
		runtime.GC()
		for _, p := range left {
			if p.Value() != nil {
				return false
			}
		}
		return true
	})
}
