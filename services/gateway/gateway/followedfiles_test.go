package gateway

import (
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/goshield/goshield/internal/certs"
)

// RELIABILITY row 15, for the files that a gateway follows: without a descriptor to spare a file has a time and a size, and cannot be
// read. Such a file is a directory here. It is told of once, and taken when it can be read, although nothing has changed by then.
func TestFileThatCannotBeReadIsReadLater(t *testing.T) {
	w := newWorld(t, testDoc())
	core, logs := observer.New(zap.WarnLevel)
	log := zap.New(core)
	old, renewed := newCA(t, "old"), newCA(t, "renewed")

	w.ticketKeys(ticketKey(1))
	server := (&certificate{}).serverConfig(nil, nil)
	keys, err := openTickets(w.path("tickets"), log, server)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := openCertificate(TLS{Cert: w.path("cert.pem"), Key: w.path("key.pem")}, log)
	if err != nil {
		t.Fatal(err)
	}
	leaf, key, err := w.ca.Issue(certs.Leaf{CommonName: "renewed", DNS: []string{"localhost"}, ValidFor: 30 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	w.write("ca.pem", old.PEM())
	ca, err := openAuthorities("ca", w.path("ca.pem"), func(err error) {
		if err != nil {
			log.Warn("told", zap.Error(err))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	trusted := ca.get()

	for _, tt := range []struct {
		name  string
		files map[string][]byte // which cannot be read at first
		in    *followedFiles
		look  func()
		taken func() bool
	}{
		{
			"ticket keys", map[string][]byte{"tickets": []byte("no key")}, &keys.file, keys.refresh,
			func() bool { return len(logs.FilterMessageSnippet("ticket").All()) == 2 }, // told of what is in it
		},
		{
			"certificate", map[string][]byte{"cert.pem": leaf, "key.pem": key}, &cert.files, func() { cert.get() },
			func() bool { return cert.get().Leaf.Subject.CommonName == "renewed" },
		},
		{
			"CA", map[string][]byte{"ca.pem": renewed.PEM()}, &ca.file, func() { ca.get() },
			func() bool { return ca.get() != trusted },
		},
	} {
		logs.TakeAll()
		changed := time.Now().Add(time.Hour)
		put := func(name string, make func(path string) error) {
			t.Helper()
			path := w.path(name)
			err := os.Remove(path)
			if err == nil {
				err = make(path)
			}
			if err == nil {
				err = os.Chtimes(path, changed, changed)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		look := func() {
			tt.in.checked = time.Time{}
			tt.look()
		}
		for name := range tt.files {
			put(name, func(path string) error { return os.Mkdir(path, 0o700) })
		}
		for range 3 {
			look()
		}
		if got := logs.All(); len(got) != 1 || !strings.Contains(got[0].ContextMap()["error"].(string), "is a directory") {
			t.Errorf("%s: logged %v, want one warning", tt.name, got)
		}
		if tt.taken() {
			t.Errorf("%s: the new file is in force, want the old one", tt.name)
		}
		for name, text := range tt.files {
			put(name, func(path string) error { return os.WriteFile(path, text, 0o600) })
		}
		look()
		if !tt.taken() {
			t.Errorf("%s: the file was not taken when it could be read", tt.name)
		}
	}
}
