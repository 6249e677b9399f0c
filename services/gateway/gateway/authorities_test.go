package gateway

import (
	"crypto/tls"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
)

// The files of CAs are read again when they change: tls.client_ca and backend.tls.ca.

func newCA(t testing.TB, name string) *certs.CA {
	t.Helper()
	ca, err := certs.NewCA(name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// cut is a file that ends in the middle of the CA's certificate.
func cut(ca *certs.CA) []byte { return ca.PEM()[:len(ca.PEM())/2] }

// showing is the TLS of a device with a certificate, which it shows whatever the gateway says it trusts.
func (w *world) showing(ca *certs.CA, leaf certs.Leaf) *tls.Config {
	w.t.Helper()
	leaf.Client, leaf.ValidFor = true, 30*time.Minute
	cert, key, err := ca.Issue(leaf)
	if err != nil {
		w.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := w.clientTLS()
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return cfg
}

// getsIn has a device enrol, and reports whether it got through TLS, and by a ticket.
func (w *world) getsIn(s *Server, cfg *tls.Config, id wire.ClientID) (in, resumed bool) {
	w.t.Helper()
	conn := tls.Client(dialRaw(w.t, s.Addr()), cfg)
	_ = conn.SetDeadline(time.Now().Add(patience))
	hello, err := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: id})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := conn.Write(hello); err == nil {
		f, err := wire.NewReader(conn, wire.MaxPayload).Next()
		in = err == nil && f.Type == wire.TypeWelcome
		if err != nil && !strings.Contains(err.Error(), "unknown certificate authority") && !strings.Contains(err.Error(), "reset") {
			w.t.Errorf("ended by %v, want an alert: unknown certificate authority", err)
		}
	}
	_ = conn.Close()
	return in, conn.ConnectionState().DidResume
}

func TestClientCAIsReadAgain(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			testClientCAIsReadAgain(t, version)
		})
	}
}

func testClientCAIsReadAgain(t *testing.T, version uint16) {
	doc := testDoc()
	doc.Enrolment = dynamic.EnrolMTLS
	w := newWorld(t, doc)
	w.auth.needCertificate = true
	older, newer := newCA(t, "older"), newCA(t, "newer")
	w.write("devices.pem", older.PEM())
	w.ticketKeys(ticketKey(1))
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) {
		cfg.TLS.ClientCA, cfg.TLS.TicketKeysFile = w.path("devices.pem"), w.path("tickets")
	})
	device := func(ca *certs.CA, n byte) func() (in, resumed bool) {
		cfg := w.showing(ca, certs.Leaf{CommonName: clientID(n).String()})
		cfg.MaxVersion, cfg.ClientSessionCache = version, tls.NewLRUClientSessionCache(0)
		return func() (in, resumed bool) { return w.getsIn(s, cfg, clientID(n)) }
	}
	want := func(what string, d func() (in, resumed bool), wantIn, wantResumed bool) {
		t.Helper()
		if in, resumed := d(); in != wantIn || resumed != wantResumed {
			t.Errorf("%s: in %v, resumed %v, want %v and %v", what, in, resumed, wantIn, wantResumed)
		}
	}
	first, second := device(older, 1), device(newer, 2)
	want("of the CA", first, true, false)
	want("of the CA, with a ticket", first, true, true)
	want("of another CA", second, false, false)

	w.write("devices.pem", append(older.PEM(), newer.PEM()...))
	eventually(t, "a device of the new CA gets in", func() bool { in, _ := second(); return in })
	want("of the old CA, which is still there", first, true, true)

	w.write("devices.pem", append(newer.PEM(), cut(older)...))
	eventually(t, "a broken file is told", func() bool { second(); return s.health.Degraded(dependencyClientCA) != "" })
	want("of the old CA, with a broken file", first, true, true)
	want("of the new CA, with a broken file", second, true, true)

	w.write("devices.pem", newer.PEM())
	eventually(t, "a good file is told", func() bool { second(); return s.health.Degraded(dependencyClientCA) == "" })
	want("of a CA that is gone, with a ticket", first, false, false)
	want("of the CA that stayed, with a ticket", second, true, true)
}

// The keys of tickets rotate for the configuration that another CA's file made, too.
func TestTicketKeysRotateBesideClientCA(t *testing.T) {
	w := newWorld(t, testDoc())
	older, newer := newCA(t, "older"), newCA(t, "newer")
	w.write("devices.pem", older.PEM())
	w.ticketKeys(ticketKey(1))
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) {
		cfg.TLS.ClientCA, cfg.TLS.TicketKeysFile = w.path("devices.pem"), w.path("tickets")
	})
	old := tls.NewLRUClientSessionCache(0)
	w.resumes(s, old)
	w.write("devices.pem", newer.PEM())
	cfg := w.showing(newer, certs.Leaf{CommonName: clientID(2).String()})
	eventually(t, "the new CA is in force", func() bool { in, _ := w.getsIn(s, cfg, clientID(2)); return in })
	if !w.resumes(s, old) {
		t.Error("a ticket from before the new CA is not good")
	}
	w.ticketKeys(ticketKey(2))
	eventually(t, "a ticket of a key that is gone is not good", func() bool { return !w.resumes(s, &frozenCache{old}) })
	w.ticketKeys(ticketKey(3), ticketKey(2))
	probe := tls.NewLRUClientSessionCache(0)
	w.resumes(s, probe)
	if !w.resumes(s, probe) {
		t.Error("a ticket of the new key is not good")
	}
}

// A file that cannot be used is told of once, and so is the one after it that can.
func TestCAFileIsToldOfOnce(t *testing.T) {
	w := newWorld(t, testDoc())
	ca := newCA(t, "devices")
	w.write("devices.pem", ca.PEM())
	core, logs := observer.New(zap.InfoLevel)
	cfg := w.config("gw-1")
	cfg.TLS.ClientCA = w.path("devices.pem")
	s, err := newServer(cfg, service.Deps{Log: zap.New(core), Metrics: prometheus.NewRegistry()}, defaultTimings())
	if err != nil {
		t.Fatal(err)
	}
	defer s.cancel() // nothing else of it runs
	a, err := openAuthorities("tls.client_ca", cfg.TLS.ClientCA, s.authoritiesRead(dependencyClientCA))
	if err != nil {
		t.Fatal(err)
	}
	look := func() { // a second later
		a.mu.Lock()
		a.file.checked = time.Time{}
		a.mu.Unlock()
		a.get()
	}
	good := a.get()
	for name, spoil := range map[string]func(){
		"empty":    func() { w.write("devices.pem", nil) },
		"garbage":  func() { w.write("devices.pem", []byte("no certificate")) },
		"half":     func() { w.write("devices.pem", cut(ca)) },
		"one half": func() { w.write("devices.pem", append(ca.PEM(), cut(ca)...)) },
		"no X.509": func() {
			w.write("devices.pem", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
		},
		"away": func() {
			if err := os.Remove(w.path("devices.pem")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		logs.TakeAll()
		spoil()
		for range 3 {
			look()
		}
		if got := logs.TakeAll(); len(got) != 1 || got[0].Level != zap.WarnLevel {
			t.Errorf("%s: logged %v, want one warning", name, got)
		}
		if s.health.Degraded(dependencyClientCA) == "" || a.get() != good {
			t.Errorf("%s: degraded %q, the same certificates %v, want it to be, and them", name, s.health.Degraded(dependencyClientCA), a.get() == good)
		}
		w.write("devices.pem", append(ca.PEM(), "# "+name+"\n"...))
		for range 3 {
			look()
		}
		if got := logs.TakeAll(); len(got) != 1 || got[0].Level != zap.InfoLevel {
			t.Errorf("after %s: logged %v, want one line", name, got)
		}
		if s.health.Degraded(dependencyClientCA) != "" || a.get() == good {
			t.Errorf("after %s: degraded %q, want nothing, and the new certificates", name, s.health.Degraded(dependencyClientCA))
		}
		good = a.get()
	}
}

// A link is opened by the CA that is in the file then.
func TestBackendCAIsReadAgain(t *testing.T) {
	w := newWorld(t, testDoc())
	b := w.secureBackend()
	s := w.gateway("gw-1", func(cfg *Config, _ *timings) {
		cfg.Backend.TLS = BackendTLS{Enabled: true, CA: w.path("ca.pem"), Cert: w.path("client.pem"), Key: w.path("client-key.pem")}
	})
	w.settled(s)
	d := w.enrolled(s, clientID(1))
	answered := func(want bool) func() bool {
		return func() bool {
			d.request(1, `1`)
			f, ok := d.next()
			return ok && (f.Type == wire.TypeResponse) == want
		}
	}
	older, newer := w.ca, newCA(t, "newer")

	w.write("ca.pem", append(older.PEM(), cut(newer)...))
	b.breakLinks()
	eventually(t, "a broken file is told", func() bool { b.breakLinks(); return s.health.Degraded(dependencyBackendCA) != "" })
	eventually(t, "with a broken file links open", answered(true))

	w.write("ca.pem", newer.PEM())
	eventually(t, "a good file is told", func() bool { b.breakLinks(); return s.health.Degraded(dependencyBackendCA) == "" })
	b.breakLinks()
	eventually(t, "a backend of the CA that is gone is not reached", answered(false))

	b.certify(newer)
	eventually(t, "one of the new CA is", answered(true))
}
