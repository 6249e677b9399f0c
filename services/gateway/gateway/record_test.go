package gateway

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/sdk/wire"
)

// TLS records that come in pieces.

// heldConn is a client's connection that sends what is written when it is told to.
type heldConn struct {
	net.Conn

	mu   sync.Mutex // a WebSocket client's pongs are written by its reader
	hold bool
	held []byte
}

// holdBack keeps what is written from now on.
func (c *heldConn) holdBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = true
}

func (c *heldConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hold {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// pending is how many bytes are held.
func (c *heldConn) pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.held)
}

// put has p held in place of what is.
func (c *heldConn) put(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = p
}

// release sends the first n bytes that are held; all of them if n is 0.
func (c *heldConn) release(t *testing.T, n int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n == 0 {
		n = len(c.held)
	}
	if _, err := c.Conn.Write(c.held[:n]); err != nil {
		t.Fatal(err)
	}
	c.held = c.held[n:]
}

// heldDevice is a device over TLS whose bytes the test sends. Its handshake's last flight is held already.
func (w *world) heldDevice(s *Server, version uint16) (*device, *heldConn) {
	w.t.Helper()
	held := &heldConn{Conn: dialRaw(w.t, s.Addr())}
	cfg := w.clientTLS()
	cfg.MaxVersion = version
	conn := tls.Client(held, cfg)
	if version == tls.VersionTLS13 { // its client's last flight waits for no answer
		cfg.VerifyConnection = func(tls.ConnectionState) error { held.holdBack(); return nil }
	}
	if err := conn.HandshakeContext(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	held.holdBack()
	return newDevice(w.t, conn), held
}

// secure has the devices of a rig come by TLS, and returns their part of it.
func (r *rig) secure(t *testing.T) *tls.Config {
	t.Helper()
	ca := newCA(t, "test") // by the bubble's clock
	cert, key, err := ca.Issue(certs.Leaf{CommonName: "gateway", DNS: []string{"localhost"}, ValidFor: 30 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	r.Server.tls = &tls.Config{Certificates: []tls.Certificate{pair}}
	return &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}
}

// heldRecords is an enrolled device over TLS, whose bytes the test sends from now on.
func (r *rig) heldRecords(t *testing.T) (*device, *heldConn) {
	t.Helper()
	cfg := r.secure(t)
	here, there := net.Pipe()
	r.accepted(there, deviceKind)
	held := &heldConn{Conn: here}
	d := newDevice(t, tls.Client(held, cfg))
	d.hello(clientID(1), wire.Token{})
	held.holdBack()
	return d, held
}

// RELIABILITY row 4, a layer deeper: the bytes of a record.
func TestRecordByteByByte(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d, held := r.heldRecords(t)
		time.Sleep(7 * time.Second)
		d.request(1, `1`)
		begun := time.Now()
		for range 10 {
			held.release(t, 1)
			time.Sleep(time.Second - time.Millisecond)
		}
		d.wantClosed(wire.CodeIdleTimeout)
		wantAfter(t, "closed", begun, 10*time.Second)
		if got := r.closed(closedFrameTimeout); got != 1 {
			t.Errorf("closed_total{frame_timeout} = %v, want 1", got)
		}
	})
}

// A record that takes its time, but less than the deadline, is a record.
func TestSlowRecordsAreServed(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d, held := r.heldRecords(t)
		for i := range uint32(5) {
			d.send(&wire.Heartbeat{Token: d.token})
			d.request(i, `1`)
			for range 8 {
				held.release(t, held.pending()/9)
				time.Sleep(time.Second)
			}
			held.release(t, 0)
			var ack wire.HeartbeatAck
			d.want(&ack)
			var resp wire.Response
			d.want(&resp)
		}
	})
}

// A record that is TLS's own, and makes no frame, has come when it has: what follows it is silence.
func TestRecordWithoutAFrame(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d, held := r.heldRecords(t)
		held.put([]byte{20, 3, 3, 0, 1, 1}) // change_cipher_spec, which means nothing in TLS 1.3
		held.release(t, 3)
		time.Sleep(5 * time.Second)
		held.release(t, 0)
		time.Sleep(14 * time.Second)
		synctest.Wait()
		d.request(1, `1`)
		held.release(t, 0)
		var resp wire.Response
		d.want(&resp)
	})
}
