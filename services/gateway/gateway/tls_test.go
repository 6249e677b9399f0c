package gateway

import (
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// Over real sockets: what comes before the first frame.

// slack is how much later than promised something may happen.
func slack() time.Duration {
	if long {
		return time.Second
	}
	return patience // on a machine that is short of time
}

// RELIABILITY row 1: garbage on the TLS port is closed, counted, and leaves nothing behind.
func TestRandomOpenings(t *testing.T) {
	openings, atOnce, within := 2000, 64, 200*time.Millisecond
	switch {
	case long:
		openings, atOnce, within = 10_000, 1000, 5*time.Second
	case testing.Short():
		openings = 300
	}
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", func(_ *Config, times *timings) { times.handshake = within })
	hello := recordClientHello(t)
	random := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for range openings {
		data := make([]byte, random.IntN(300))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		if random.IntN(2) == 0 { // a ClientHello with some bytes changed
			data = append([]byte(nil), hello...)
			for range 1 + random.IntN(4) {
				data[random.IntN(len(data))] = byte(random.Uint32())
			}
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			conn, err := net.Dial("tcp", s.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(within + slack()))
			_, _ = conn.Write(data)
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Errorf("an opening of %d bytes was not closed within %v", len(data), within)
			}
		})
	}
	wg.Wait()
	eventually(t, "every connection is forgotten", func() bool {
		s.sockets.mu.Lock()
		defer s.sockets.mu.Unlock()
		return len(s.sockets.all) == 0 && testutil.ToFloat64(s.metrics.handshaking) == 0
	})
	failed := testutil.ToFloat64(s.metrics.handshakes.WithLabelValues(handshakeFailed)) +
		testutil.ToFloat64(s.metrics.handshakes.WithLabelValues(handshakeTimeout))
	if ok := testutil.ToFloat64(s.metrics.handshakes.WithLabelValues(handshakeOK)); failed+ok != float64(openings) {
		t.Errorf("handshakes_total = %v failed, %v ok, want %d together", failed, ok, openings)
	}
	if n := testutil.ToFloat64(s.metrics.handshaking); n != 0 {
		t.Errorf("connections{handshaking} = %v, want 0", n)
	}
}

// recordClientHello is what crypto/tls says first.
func recordClientHello(t *testing.T) []byte {
	t.Helper()
	here, there := net.Pipe()
	go func() {
		_ = tls.Client(here, &tls.Config{ServerName: "localhost"}).Handshake() // ends with the pipe
	}()
	buf := make([]byte, 4096)
	n, err := there.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_ = there.Close()
	_ = here.Close()
	return buf[:n]
}

// RELIABILITY row 2.
func TestOldTLSIsRefused(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		cfg := w.clientTLS()
		cfg.MinVersion, cfg.MaxVersion = version, version
		conn, err := tls.Dial("tcp", s.Addr(), cfg)
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s was accepted, want an alert", tls.VersionName(version))
		} else if !strings.Contains(err.Error(), "protocol version not supported") {
			t.Errorf("%s: error = %v, want the alert protocol_version", tls.VersionName(version), err)
		}
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := w.clientTLS()
		cfg.MinVersion, cfg.MaxVersion = version, version
		conn, err := tls.Dial("tcp", s.Addr(), cfg)
		if err != nil {
			t.Errorf("%s: %v, want it accepted", tls.VersionName(version), err)
			continue
		}
		d := newDevice(t, conn)
		d.hello(clientID(1), wire.Token{})
	}
}

// RELIABILITY row 3: whoever stalls takes nothing from others, although they are ten times
// as many as may compute at once.
func TestStalledHandshakes(t *testing.T) {
	silent, within := 400, 3*time.Second
	if long {
		silent, within = 2000, 5*time.Second
	}
	for ; ; within *= 4 { // a machine that is short of time may need more for the one that does not stall
		took, ok := amongStalled(t, silent, within)
		if ok && long {
			t.Attr("welcome_among_stalled_handshakes", took.Round(time.Microsecond).String())
		}
		if ok {
			return
		}
		if within > time.Minute {
			t.Fatalf("a device among %d stalled handshakes was not welcomed within %v, want it not to wait for their end", silent, within)
		}
	}
}

// amongStalled connects those who stall and a device that does not. It reports how soon that one was welcomed, and whether
// that was before the handshakes of the others ended.
func amongStalled(t *testing.T, silent int, within time.Duration) (took time.Duration, ok bool) {
	t.Helper()
	doc := testDoc()
	doc.GatewayLimit.MaxHandshakes = 4
	w := newWorld(t, doc)
	s := w.gateway("gw-1", func(_ *Config, times *timings) { times.handshake = within })
	defer s.Kill()
	hello := recordClientHello(t)
	var stalled []net.Conn
	const halfway = 40 // fewer than may wait at the gate
	for i := range silent + halfway {
		conn := dialRaw(t, s.Addr())
		_ = conn.SetDeadline(time.Now().Add(within + slack()))
		sent := hello // and stop after the server's flight
		if i < silent {
			sent = hello[:i%len(hello)] // silent, or stuck at any byte
		}
		_, _ = conn.Write(sent) // where this has taken long, the first ones have been closed
		stalled = append(stalled, conn)
	}
	begun := time.Now()
	d := newDevice(t, tls.Client(dialRaw(t, s.Addr()), w.clientTLS()))
	hello, err := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: clientID(1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.conn.Write(hello); err != nil {
		return 0, false
	}
	welcome, _ := d.next()
	if took = time.Since(begun); welcome.Type != wire.TypeWelcome || took >= within {
		return took, false
	}
	for _, conn := range stalled {
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
			t.Fatalf("a stalled handshake was not closed within %v", within)
		}
	}
	if n := testutil.ToFloat64(s.metrics.handshakes.WithLabelValues(handshakeTimeout)); n < float64(silent) {
		t.Errorf("handshakes_total{timeout} = %v, want at least %d", n, silent)
	}
	return took, true
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// The gate lets no more compute than allowed, and refuses when too many wait.
func TestGate(t *testing.T) {
	var g gate
	g.setLimit(2)
	for range 2 {
		if err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	results := make(chan error)
	for range 2 * gateQueue {
		go func() { results <- g.enter(t.Context()) }()
	}
	eventually(t, "the queue is full", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.queue) == 2*gateQueue })
	if err := g.enter(t.Context()); !errors.Is(err, errOverloaded) {
		t.Errorf("enter with a full queue = %v, want errOverloaded", err)
	}
	g.setLimit(3)
	if err := <-results; err != nil {
		t.Error(err)
	}
	for range 2*gateQueue - 1 {
		g.leave()
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		g.leave()
	}
	if g.in != 0 || len(g.queue) != 0 {
		t.Errorf("in = %d, waiting = %d, want 0 and 0", g.in, len(g.queue))
	}
}

// RELIABILITY row 49: a certificate that is replaced serves new handshakes; who
// is connected notices nothing.
func TestCertificateIsReplaced(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	name := func() string {
		conn, err := tls.Dial("tcp", s.Addr(), w.clientTLS())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if got := name(); got != "gateway" {
		t.Fatalf("certificate of %q, want gateway", got)
	}
	d := w.enrolled(s, clientID(1))
	w.write("cert.pem", []byte("half a certificate")) // as while it is being replaced
	time.Sleep(filesCheck + 100*time.Millisecond)
	if got := name(); got != "gateway" {
		t.Errorf("with a broken file: certificate of %q, want the old one", got)
	}
	w.writeCertificate("gateway renewed")
	eventually(t, "the new certificate is shown", func() bool { return name() == "gateway renewed" })
	if ack := d.beat(); !ack.Token.IsZero() {
		t.Errorf("ack = %+v, want a plain one", ack)
	}
}

// A proof is bound to its TLS connection; one made for another connection is worth nothing.
func TestProofIsBoundToTheChannel(t *testing.T) {
	doc := testDoc()
	doc.Enrolment = dynamic.EnrolKey
	w := newWorld(t, doc)
	w.auth.needKey = true
	s := w.gateway("gw-1", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, bound := range []bool{true, false} {
			cfg := w.clientTLS()
			cfg.MinVersion, cfg.MaxVersion = version, version
			conn, err := tls.Dial("tcp", s.Addr(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			var binding [32]byte
			state := conn.ConnectionState()
			if bound {
				value, err := state.ExportKeyingMaterial(wire.ExporterLabel, nil, 32)
				if err != nil {
					t.Fatal(err)
				}
				binding = [32]byte(value)
			}
			d := newDevice(t, conn)
			d.send(&wire.Hello{ClientID: clientID(1)})
			var c wire.Challenge
			d.want(&c)
			d.send(&wire.Proof{Proof: wire.ProofOf(wire.DeviceKey(groupKey, clientID(1)), c.Nonce, binding, clientID(1))})
			if bound {
				d.want(&d.welcome)
			} else {
				d.wantClosed(wire.CodeBadProof)
			}
		}
	}
}

// A listener without binding takes the proof of a client that cannot read the exporter, and no other: which of the two
// it wants is not the client's to choose.
func TestProofWithoutBinding(t *testing.T) {
	doc := testDoc()
	doc.Enrolment = dynamic.EnrolKey
	w := newWorld(t, doc)
	w.auth.needKey = true
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) { cfg.TLS.ChannelBinding = bindingNone })
	for _, bound := range []bool{false, true} {
		conn, err := tls.Dial("tcp", s.Addr(), w.clientTLS())
		if err != nil {
			t.Fatal(err)
		}
		var binding [32]byte
		if bound {
			state := conn.ConnectionState()
			value, err := state.ExportKeyingMaterial(wire.ExporterLabel, nil, len(binding))
			if err != nil {
				t.Fatal(err)
			}
			binding = [32]byte(value)
		}
		d := newDevice(t, conn)
		d.send(&wire.Hello{ClientID: clientID(1)})
		var c wire.Challenge
		d.want(&c)
		d.send(&wire.Proof{Proof: wire.ProofOf(wire.DeviceKey(groupKey, clientID(1)), c.Nonce, binding, clientID(1))})
		if bound {
			d.wantClosed(wire.CodeBadProof)
		} else {
			d.want(&d.welcome)
		}
	}
}

// In mode mtls a certificate of the device's name, by the right authority, enrols it; the token alone
// resumes.
func TestEnrolmentByCertificate(t *testing.T) {
	doc := testDoc()
	doc.Enrolment = dynamic.EnrolMTLS
	w := newWorld(t, doc)
	w.auth.needCertificate = true
	devices := newCA(t, "devices")
	w.write("devices.pem", devices.PEM())
	s := w.gateway("gw-1", func(c *Config, _ *timings) { c.TLS.ClientCA = w.path("devices.pem") })
	id := clientID(1)
	dial := func(cfg *tls.Config) *device {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.Addr(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return newDevice(t, conn)
	}
	var token wire.Token
	for name, leaf := range map[string]certs.Leaf{
		"common name": {CommonName: id.String()},
		"URI":         {CommonName: "a meter", URIs: []*url.URL{{Path: id.String()}}},
	} {
		d := dial(w.showing(devices, leaf))
		d.hello(id, wire.Token{})
		token = d.welcome.Token
		if token.IsZero() {
			t.Errorf("%s: no token", name)
		}
	}
	d := dial(w.clientTLS())
	d.hello(id, token)

	for name, cfg := range map[string]*tls.Config{
		"none":           w.clientTLS(),
		"another's":      w.showing(devices, certs.Leaf{CommonName: clientID(2).String()}),
		"without a name": w.showing(devices, certs.Leaf{CommonName: "a meter"}),
	} {
		d := dial(cfg)
		d.send(&wire.Hello{ClientID: id})
		if e := d.wantClosed(wire.CodeBadProof); e == nil {
			t.Errorf("certificate %s: not refused", name)
		}
	}
	// One of another authority does not get through TLS.
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.Addr(), w.showing(w.ca, certs.Leaf{CommonName: id.String()}))
	if err == nil { // TLS 1.3 tells the client with the first read
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
		t.Errorf("a certificate of another authority: %v, want an alert: unknown certificate authority", err)
	}
}

// An ERROR arrives although the device has sent more than the gateway has read.
func TestLastWordsArrive(t *testing.T) {
	for _, mode := range []string{tlsOn, tlsOff} {
		w := newWorld(t, testDoc())
		s := w.gateway("gw-1", func(cfg *Config, times *timings) {
			cfg.TLS.Mode = mode
			times.lastWords, times.linger = patience, patience // however slowly the device writes
		})
		for range 20 {
			conn, err := net.Dial("tcp", s.Addr())
			if err != nil {
				t.Fatal(err)
			}
			if mode == tlsOn {
				conn = tls.Client(conn, w.clientTLS())
			}
			d := newDevice(t, conn)
			d.write(append([]byte{1, 1, 0xff, 0xff}, make([]byte, 100000)...))
			d.wantClosed(wire.CodeFrameTooLarge)
		}
	}
}
