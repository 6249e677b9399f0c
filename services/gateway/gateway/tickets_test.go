package gateway

import (
	"crypto/tls"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

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

func TestTicketKeysRotate(t *testing.T) {
	w := newWorld(t, testDoc())
	w.ticketKeys(ticketKey(1))
	s := w.gateway("gw-1", withTickets(w))
	old := tls.NewLRUClientSessionCache(0)
	w.resumes(s, old)
	probe := tls.NewLRUClientSessionCache(0)
	resume := func(what string, cache tls.ClientSessionCache, want bool) {
		t.Helper()
		eventually(t, what, func() bool { return w.resumes(s, cache) == want })
	}
	w.ticketKeys(ticketKey(2), ticketKey(1))
	resume("a ticket of the key before is good", old, true)
	w.ticketKeys("no key")
	resume("a wrong file changes nothing", old, true)
	w.ticketKeys(ticketKey(3))
	resume("a ticket of a key that is gone is not", &frozenCache{old}, false)
	w.resumes(s, probe)
	resume("a new one is", probe, true)
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
