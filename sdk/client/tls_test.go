package client_test

// Real TLS over loopback: verification, resumption, the proof's binding. And what many clients cost.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/internal/leaktest"
	"github.com/goshield/goshield/sdk/wire"
)

// tlsGateway listens on loopback with a certificate of its own for 127.0.0.1.
type tlsGateway struct {
	t       testing.TB
	ln      net.Listener
	trusted *x509.CertPool
}

func newTLSGateway(t testing.TB) *tlsGateway {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	g := &tlsGateway{t: t, trusted: x509.NewCertPool()}
	g.trusted.AddCert(cert)
	g.ln, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *tlsGateway) config() client.Config {
	return client.Config{Addr: g.ln.Addr().String(), ClientID: testID(g.t), TLS: &tls.Config{RootCAs: g.trusted}, BackoffBase: time.Millisecond}
}

// start plays each connection in turn until stop, which waits for all of them.
func (g *tlsGateway) start(play func(p *peer)) (stop func()) {
	var plays sync.WaitGroup
	plays.Go(func() {
		for {
			conn, err := g.ln.Accept()
			if err != nil {
				return
			}
			plays.Go(func() {
				defer conn.Close()
				play(newPeer(g.t, conn))
			})
		}
	})
	return func() {
		_ = g.ln.Close()
		plays.Wait()
	}
}

func TestTLS(t *testing.T) {
	defer leaktest.None(t)
	g, token := newTLSGateway(t), newToken(t)
	defer g.start(func(p *peer) { p.serve(token) })()
	cfg := g.config()
	made := make(chan client.Connected, 1)
	cfg.Hooks.OnConnect = func(info client.Connected) { made <- info }
	c, err := client.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	info := <-made
	if !info.Enrolled || info.TLSResumed || info.Dial <= 0 || info.Handshake <= 0 || info.Welcome <= 0 || info.Total() != info.Dial+info.Handshake+info.Welcome {
		t.Errorf("OnConnect: got %+v", info)
	}
	if body, err := c.Request(t.Context(), "echo", []byte(`{"a":1}`)); err != nil || string(body) != `{"a":1}` {
		t.Errorf("Request: got %s, %v", body, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A reconnect resumes the TLS session too: a storm of them is cheaper for the gateway.
func TestTLSSessionIsResumed(t *testing.T) {
	defer leaktest.None(t)
	g, token := newTLSGateway(t), newToken(t)
	first := true
	var mu sync.Mutex
	defer g.start(func(p *peer) {
		mu.Lock()
		kick := first
		first = false
		mu.Unlock()
		if kick {
			p.welcome(token)
			p.echo() // whoever reads has read the ticket
			p.send(wire.Errorf(wire.CodeKicked, ""))
			return
		}
		p.serve(token)
	})()
	cfg := g.config()
	made := make(chan client.Connected, 2)
	cfg.Hooks.OnConnect = func(info client.Connected) { made <- info }
	c, err := client.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Request(t.Context(), "echo", []byte(`1`)); err != nil {
		t.Error(err)
	}
	<-made
	if again := <-made; !again.TLSResumed || again.Enrolled {
		t.Errorf("second connection: got %+v, want both TLS and the token resumed", again)
	}
}

func TestTLSIsVerified(t *testing.T) {
	defer leaktest.None(t)
	g, other := newTLSGateway(t), newTLSGateway(t)
	defer g.start(func(p *peer) { _, _ = p.next() })()
	defer other.ln.Close()
	for _, test := range []struct {
		name   string
		change func(cfg *client.Config)
		want   string
	}{
		{"unknown authority", func(cfg *client.Config) { cfg.TLS.RootCAs = other.trusted }, "unknown authority"},
		{"another name", func(cfg *client.Config) { cfg.TLS.ServerName = "example.org" }, "example.org"},
		{"plain", func(cfg *client.Config) { cfg.TLS = nil }, ""},
	} {
		cfg := g.config()
		test.change(&cfg)
		c, err := client.Dial(t.Context(), cfg)
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.name, err, test.want)
		}
	}
}

func TestProof(t *testing.T) {
	defer leaktest.None(t)
	nonce := [32]byte{1, 2, 3}
	key := wire.DeviceKey([]byte("the group's key, of thirty-two b"), testID(t))
	for _, test := range []struct {
		name   string
		change func(cfg *client.Config)
		bound  bool
		want   string // of Dial's error; "" for none
	}{
		{"bound", func(cfg *client.Config) { cfg.DeviceKey = &key }, true, ""},
		{"not bound", func(cfg *client.Config) { cfg.DeviceKey = &key; cfg.NoChannelBinding = true }, false, ""},
		{"no key", func(*client.Config) {}, true, "has no key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, token := newTLSGateway(t), newToken(t)
			defer g.start(func(p *peer) {
				expect[*wire.Hello](p)
				p.send(&wire.Challenge{Nonce: nonce})
				m, err := p.next()
				if err != nil {
					return // the device that has no key
				}
				var binding [32]byte
				if test.bound {
					state := p.conn.(*tls.Conn).ConnectionState()
					exported, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
					if err != nil {
						t.Error(err)
					}
					copy(binding[:], exported)
				}
				if got := m.(*wire.Proof).Proof; got != wire.ProofOf(key, nonce, binding, testID(t)) {
					t.Errorf("PROOF: got %x", got)
				}
				p.send(&wire.Welcome{Token: token, ExpiresAt: time.Now().Add(time.Hour)})
				_, _ = p.next()
			})()
			cfg := g.config()
			test.change(&cfg)
			c, err := client.Dial(t.Context(), cfg)
			if err == nil {
				c.Close()
			}
			if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Dial: got %v, want %q", err, test.want)
			}
		})
	}
}

// A gateway that asks twice is broken: proofs are not given away.
func TestSecondChallenge(t *testing.T) {
	g := newFakeGateway(t)
	cfg := g.config()
	cfg.DeviceKey = new([32]byte)
	d := dialInBackground(cfg)
	p := g.accept()
	expect[*wire.Hello](p)
	p.send(&wire.Challenge{})
	expect[*wire.Proof](p)
	p.send(&wire.Challenge{})
	if <-d.done; !errors.Is(d.err, client.ErrProtocol) {
		t.Errorf("Dial: got %v, want ErrProtocol", d.err)
	}
}

// Ten thousand devices in one process have to be possible: two goroutines each.
func TestManyClients(t *testing.T) {
	defer leaktest.None(t)
	const n = 100
	g, token := newTLSGateway(t), newToken(t)
	stop := g.start(func(p *peer) { p.serve(token, withHeartbeat(time.Minute)) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before := runtime.NumGoroutine()
	clients := make([]*client.Client, n)
	for i := range clients {
		var err error
		if clients[i], err = client.Dial(ctx, g.config()); err != nil {
			t.Fatal(err)
		}
		if _, err := clients[i].Request(ctx, "echo", []byte(`1`)); err != nil {
			t.Fatal(err)
		}
	}
	// One more for each is the gateway's. Those of a handshake may be about to end.
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine()-before > 3*n+5 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if got := runtime.NumGoroutine() - before; got > 3*n+5 {
		t.Errorf("goroutines: got %d for %d clients and their gateway's, want 3 each", got, n)
	}
	for _, c := range clients {
		c.Close()
	}
	stop()
}
