package gateway

import (
	"crypto/tls"
	"encoding/hex"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/sdk/wire"
)

// TLS session tickets that all gateways share: a device resumes wherever it comes back.

func ticketKey(n byte) string {
	return hex.EncodeToString([]byte(strings.Repeat(string(rune('a'+n)), 32)))
}

// ticketKeys replaces the file with the keys; each call is later by the file's time.
func (w *world) ticketKeys(keys ...string) {
	w.t.Helper()
	last := time.Time{}
	if info, err := os.Stat(w.path("tickets")); err == nil {
		last = info.ModTime()
	}
	w.write("tickets", []byte(strings.Join(keys, "\n")+"\n"))
	if err := os.Chtimes(w.path("tickets"), time.Time{}, last.Add(time.Second)); err != nil {
		w.t.Fatal(err)
	}
}

func withTickets(w *world) func(*Config, *timings) {
	return func(cfg *Config, _ *timings) { cfg.TLS.TicketKeysFile = w.path("tickets") }
}

// resumes connects a device, has it served, and reports whether its TLS session was resumed.
func (w *world) resumes(s *Server, cache tls.ClientSessionCache) bool {
	w.t.Helper()
	cfg := w.clientTLS()
	cfg.ClientSessionCache = cache
	conn := tls.Client(dialRaw(w.t, s.Addr()), cfg)
	d := newDevice(w.t, conn)
	d.hello(clientID(1), wire.Token{}) // WELCOME comes behind the tickets
	d.send(&wire.Bye{})
	d.wantEnd()
	return conn.ConnectionState().DidResume
}

func TestTicketsAreShared(t *testing.T) {
	w := newWorld(t, testDoc())
	w.ticketKeys(ticketKey(1))
	first, second := w.gateway("gw-1", withTickets(w)), w.gateway("gw-2", withTickets(w))
	stranger := w.gateway("gw-3", nil) // with keys of its own
	cache := tls.NewLRUClientSessionCache(0)
	if w.resumes(first, cache) {
		t.Error("the first connection resumed a session, want a full handshake")
	}
	for _, s := range []*Server{second, first, second} {
		if !w.resumes(s, cache) {
			t.Error("a device that came back to another gateway did not resume")
		}
	}
	if w.resumes(stranger, cache) {
		t.Error("a gateway without the keys resumed a session")
	}
}

// ticketing is what makes and takes tickets, without the gateway around it.
type ticketing struct {
	*world
	version uint16 // of the device
	cert    *certificate
	server  *tls.Config // with the keys of the file
	keys    *tickets
	logs    *observer.ObservedLogs
}

// newTicketing begins with key 1.
func newTicketing(t *testing.T, version uint16) *ticketing {
	t.Helper()
	k := &ticketing{world: newWorld(t, testDoc()), version: version}
	k.ticketKeys(ticketKey(1))
	var err error
	if k.cert, err = openCertificate(TLS{Cert: k.path("cert.pem"), Key: k.path("key.pem")}, zapNop()); err != nil {
		t.Fatal(err)
	}
	var core zapcore.Core
	core, k.logs = observer.New(zap.InfoLevel)
	k.server = k.cert.serverConfig(nil, nil)
	if k.keys, err = openTickets(k.path("tickets"), zap.New(core), k.server); err != nil {
		t.Fatal(err)
	}
	return k
}

// holding is a server that has that key alone.
func (k *ticketing) holding(n byte) *tls.Config {
	k.t.Helper()
	keys, err := parseTicketKeys(ticketKey(n))
	if err != nil {
		k.t.Fatal(err)
	}
	cfg := k.cert.serverConfig(nil, nil)
	cfg.SetSessionTicketKeys(keys)
	return cfg
}

// handshake reports whether the device resumed a session.
func (k *ticketing) handshake(server *tls.Config, cache tls.ClientSessionCache) bool {
	k.t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	served := make(chan error, 1)
	go func() { // ends with the pipe
		_, err := tls.Server(there, server).Write([]byte{0})
		served <- err
	}()
	cfg := k.clientTLS()
	cfg.MaxVersion, cfg.ClientSessionCache = k.version, cache
	conn := tls.Client(here, cfg)
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err != nil { // which comes behind the ticket
		k.t.Fatal(err)
	}
	if err := <-served; err != nil {
		k.t.Fatal(err)
	}
	return conn.ConnectionState().DidResume
}

// look has the next handshake look at the file.
func (k *ticketing) look() {
	k.keys.mu.Lock()
	defer k.keys.mu.Unlock()
	k.keys.file.checked = time.Time{}
}

// ticket is a new one.
func (k *ticketing) ticket() tls.ClientSessionCache {
	k.t.Helper()
	cache := tls.NewLRUClientSessionCache(0)
	if k.handshake(k.server, cache) {
		k.t.Fatal("resumed without a ticket")
	}
	return &frozenCache{cache}
}

func (k *ticketing) want(what string, ticket tls.ClientSessionCache, at *tls.Config, resumes bool) {
	k.t.Helper()
	if got := k.handshake(at, ticket); got != resumes {
		k.t.Errorf("%s: resumed %v, want %v", what, got, resumes)
	}
}

func eachTLS(t *testing.T, f func(t *testing.T, k *ticketing)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { f(t, newTicketing(t, version)) })
	}
}

// The first key makes tickets, all of the file's are accepted, and those of a key that is gone are not.
func TestTicketKeysRotate(t *testing.T) {
	eachTLS(t, func(t *testing.T, k *ticketing) {
		first := k.ticket()
		k.want("a ticket of key 1, where there is no other", first, k.holding(1), true)

		k.ticketKeys(ticketKey(2), ticketKey(1))
		k.look()
		second := k.ticket()
		k.want("a new ticket where there is key 1", second, k.holding(1), false)
		k.want("a new ticket where there is key 2", second, k.holding(2), true)
		k.want("a new ticket", second, k.server, true)
		k.want("a ticket of the key before", first, k.server, true)

		k.ticketKeys(ticketKey(3), ticketKey(2))
		k.look()
		k.want("a ticket of a key that is gone", first, k.server, false)
		k.want("one of a key that has moved back", second, k.server, true)
		k.want("a new one", k.ticket(), k.holding(3), true)
		if n := k.logs.Len(); n != 0 {
			t.Errorf("%d lines logged, want none", n)
		}
	})
}

// A file that is wrong, or cannot be read, changes nothing, and is told of once.
func TestWrongTicketKeysChangeNothing(t *testing.T) {
	eachTLS(t, func(t *testing.T, k *ticketing) {
		first := k.ticket()
		k.ticketKeys(ticketKey(2), ticketKey(1))
		k.look()
		second := k.ticket()
		for name, spoil := range map[string]func(){
			"no key":                  func() { k.ticketKeys("no key") },
			"a good one, and another": func() { k.ticketKeys(ticketKey(4), "no key") },
			"empty":                   func() { k.ticketKeys() },
			"too many":                func() { k.ticketKeys(ticketKey(4), ticketKey(5), ticketKey(6), ticketKey(7)) },
			"away": func() {
				if err := os.Remove(k.path("tickets")); err != nil {
					t.Fatal(err)
				}
			},
		} {
			spoil()
			for range 3 {
				k.look()
				k.want(name+": a ticket of the first key", second, k.server, true)
			}
			k.want(name+": a ticket of the other", first, k.server, true)
			k.want(name+": a new one", k.ticket(), k.holding(2), true)
			if got := k.logs.TakeAll(); len(got) != 1 || got[0].Level != zap.WarnLevel {
				t.Errorf("%s: logged %v, want one warning", name, got)
			}
		}
	})
}

// Gateways look at the file while they run.
func TestNewTicketKeysAreTaken(t *testing.T) {
	w := newWorld(t, testDoc())
	w.ticketKeys(ticketKey(1))
	s := w.gateway("gw-1", withTickets(w))
	ticket := tls.NewLRUClientSessionCache(0)
	w.resumes(s, ticket)
	if !w.resumes(s, &frozenCache{ticket}) {
		t.Fatal("a ticket is not good")
	}
	w.ticketKeys(ticketKey(2))
	eventually(t, "a ticket of a key that is gone is not good", func() bool { return !w.resumes(s, &frozenCache{ticket}) })
}

// frozenCache keeps the ticket it has.
type frozenCache struct{ tls.ClientSessionCache }

func (*frozenCache) Put(string, *tls.ClientSessionState) {}

func TestTicketKeysAreChecked(t *testing.T) {
	w := newWorld(t, testDoc())
	for name, text := range map[string]string{
		"no keys": "\n", "too many": strings.Repeat(ticketKey(1)+"\n", 4), "too short": ticketKey(1)[2:], "no hex": strings.Repeat("x", 64),
	} {
		w.write("tickets", []byte(text))
		_, err := w.tryGateway("gw-1", withTickets(w))
		if err == nil || !strings.HasPrefix(err.Error(), "tls.ticket_keys_file: ") {
			t.Errorf("%s: error = %v, want one that names tls.ticket_keys_file", name, err)
		}
		if err != nil && strings.Contains(err.Error(), strings.TrimSpace(text)) && len(strings.TrimSpace(text)) > 0 {
			t.Errorf("%s: the error tells the key", name)
		}
	}
}
