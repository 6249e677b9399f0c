package certs

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newTestCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test", time.Hour)
	if err != nil {
		t.Fatalf("NewCA: %v", err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, leaf Leaf) tls.Certificate {
	t.Helper()
	certPEM, keyPEM, err := ca.Issue(leaf)
	if err != nil {
		t.Fatalf("Issue: %v", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatalf("X509KeyPair: %v", err)
	}
	return pair
}

// handshake runs TLS over loopback and returns both sides' verdicts.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	deadline := time.Now().Add(time.Minute)
	done := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(deadline)
		_, err = tls.Server(conn, server).Write([]byte{1})
		done <- err
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(deadline)
	// In TLS 1.3 a refused client certificate shows in the first read.
	_, clientErr = tls.Client(conn, client).Read(make([]byte, 1))
	_ = conn.Close()
	return <-done, clientErr
}

func TestHandshakes(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	localhost := issue(t, ca, Leaf{DNS: []string{"localhost"}, IPs: []net.IP{net.IPv6loopback}, ValidFor: 30 * time.Minute})
	expired := issue(t, ca, Leaf{DNS: []string{"localhost"}, ValidFor: -time.Minute})
	device := issue(t, ca, Leaf{CommonName: "device", DNS: []string{"device"}, Client: true, ValidFor: 30 * time.Minute})
	peer := issue(t, ca, Leaf{DNS: []string{"localhost"}, Peer: true, ValidFor: 30 * time.Minute})
	for _, test := range []struct {
		name           string
		server, client *tls.Config
		want           string // in either side's error; "" for none
	}{
		{"by name", &tls.Config{Certificates: []tls.Certificate{localhost}},
			&tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}, ""},
		{"by address", &tls.Config{Certificates: []tls.Certificate{localhost}},
			&tls.Config{RootCAs: ca.Pool(), ServerName: "::1"}, ""},
		{"another name", &tls.Config{Certificates: []tls.Certificate{localhost}},
			&tls.Config{RootCAs: ca.Pool(), ServerName: "example.org"}, "not example.org"},
		{"another authority", &tls.Config{Certificates: []tls.Certificate{localhost}},
			&tls.Config{RootCAs: other.Pool(), ServerName: "localhost"}, "unknown authority"},
		{"expired", &tls.Config{Certificates: []tls.Certificate{expired}},
			&tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}, "expired"},
		{"client certificate",
			&tls.Config{Certificates: []tls.Certificate{localhost}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert},
			&tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{device}}, ""},
		{"a peer's, on both sides",
			&tls.Config{Certificates: []tls.Certificate{peer}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert},
			&tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{peer}}, ""},
		{"server certificate as a client's",
			&tls.Config{Certificates: []tls.Certificate{localhost}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert},
			&tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{localhost}}, "key usage"},
		{"client certificate as a server's", &tls.Config{Certificates: []tls.Certificate{device}},
			&tls.Config{RootCAs: ca.Pool(), ServerName: "device"}, "key usage"},
	} {
		t.Run(test.name, func(t *testing.T) {
			serverErr, clientErr := handshake(t, test.server, test.client)
			got := ""
			for _, err := range []error{serverErr, clientErr} {
				if err != nil {
					got += err.Error() + "; "
				}
			}
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("handshake: got %q, want %q", got, test.want)
			}
		})
	}
}

func TestLeafNamesAndURIs(t *testing.T) {
	ca := newTestCA(t)
	uri := &url.URL{Scheme: "goshield", Opaque: "device"}
	leaf := issue(t, ca, Leaf{CommonName: "cn", URIs: []*url.URL{uri}, Client: true, ValidFor: 2 * time.Hour}).Leaf
	if leaf.Subject.CommonName != "cn" || len(leaf.URIs) != 1 || leaf.URIs[0].String() != uri.String() {
		t.Errorf("leaf: got %q %v, want cn and %v", leaf.Subject.CommonName, leaf.URIs, uri)
	}
	if leaf.NotAfter.After(ca.NotAfter()) {
		t.Errorf("leaf ends %v, after its authority %v", leaf.NotAfter, ca.NotAfter())
	}
	if leaf.IsCA {
		t.Error("a leaf may sign others")
	}
}

func TestLoadCA(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	again, err := LoadCA(ca.PEM(), ca.KeyPEM())
	if err != nil {
		t.Fatalf("LoadCA: %v", err)
	}
	leaf := issue(t, again, Leaf{DNS: []string{"a"}, ValidFor: 30 * time.Minute}).Leaf
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: "a"}); err != nil {
		t.Errorf("what a loaded authority signs: %v", err)
	}
	if _, err := LoadCA(ca.PEM(), other.KeyPEM()); err == nil {
		t.Error("another authority's key: no error")
	}
	certPEM, keyPEM, err := ca.Issue(Leaf{DNS: []string{"a"}, ValidFor: 30 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(certPEM, keyPEM); err == nil {
		t.Error("a leaf as authority: no error")
	}
	if _, err := LoadCA([]byte("no PEM"), ca.KeyPEM()); err == nil {
		t.Error("no PEM: no error")
	}
}

func TestEnsureDirMakesAndReuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	first, err := EnsureDir(dir)
	if err != nil {
		t.Fatalf("EnsureDir: %v", err)
	}
	if !first.NewCA || !first.NewServer {
		t.Errorf("first: got NewCA %v, NewServer %v, want both", first.NewCA, first.NewServer)
	}
	for path, want := range map[string]os.FileMode{first.CA: 0o644, first.CAKey: 0o600, first.Server: 0o644, first.ServerKey: 0o600} {
		if info, err := os.Stat(path); err != nil {
			t.Error(err)
		} else if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: mode %v, want %v", filepath.Base(path), got, want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 4 {
		t.Errorf("files in the directory: %v, want four", entries)
	}
	second, err := EnsureDir(dir)
	if err != nil || second.NewCA || second.NewServer {
		t.Errorf("again: got %+v, %v; want nothing new", second, err)
	}
	if !second.NotAfter.Equal(first.NotAfter) {
		t.Errorf("again: NotAfter %v, want %v", second.NotAfter, first.NotAfter)
	}
	third, err := EnsureDir(dir, "example.org", "10.0.0.1")
	if err != nil || third.NewCA || !third.NewServer {
		t.Errorf("with more hosts: got %+v, %v; want a new server certificate only", third, err)
	}
	all := "localhost example.org 127.0.0.1 ::1 10.0.0.1"
	if got := strings.Join(third.Hosts, " "); got != all {
		t.Errorf("hosts: got %s, want %s", got, all)
	}
	if fourth, err := EnsureDir(dir); err != nil || fourth.NewServer || strings.Join(fourth.Hosts, " ") != all {
		t.Errorf("without the hosts again: got %+v, %v, want it kept", fourth, err)
	}
	if fifth, err := EnsureDir(dir, "example.com"); err != nil || !fifth.NewServer || len(fifth.Hosts) != 6 {
		t.Errorf("with another host: got %+v, %v, want a new one with all of them", fifth, err)
	}
	pair, err := tls.LoadX509KeyPair(third.Server, third.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "example.org", "10.0.0.1"} {
		if err := pair.Leaf.VerifyHostname(host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestEnsureDirReplacesWhatDoesNotServe(t *testing.T) {
	soon := func(t *testing.T, p Paths) {
		ca, err := LoadCA(read(t, p.CA), read(t, p.CAKey))
		if err != nil {
			t.Fatal(err)
		}
		certPEM, keyPEM, err := ca.Issue(Leaf{DNS: []string{"localhost"},
			IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, ValidFor: renewBefore - time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		write(t, p.Server, certPEM)
		write(t, p.ServerKey, keyPEM)
	}
	for _, test := range []struct {
		name              string
		harm              func(t *testing.T, p Paths)
		newCA, newServer  bool
		wantErrContaining string
	}{
		{"server near its end", soon, false, true, ""},
		{"server broken", func(t *testing.T, p Paths) { write(t, p.Server, []byte("no PEM")) }, false, true, ""},
		{"server key gone", func(t *testing.T, p Paths) { remove(t, p.ServerKey) }, false, true, ""},
		{"authority of another", func(t *testing.T, p Paths) {
			other, err := NewCA("other", 2*renewBefore)
			if err != nil {
				t.Fatal(err)
			}
			write(t, p.CA, other.PEM())
			write(t, p.CAKey, other.KeyPEM())
		}, false, true, ""},
		{"authority near its end", func(t *testing.T, p Paths) {
			old := newTestCA(t)
			write(t, p.CA, old.PEM())
			write(t, p.CAKey, old.KeyPEM())
		}, true, true, ""},
		{"authority broken", func(t *testing.T, p Paths) { write(t, p.CA, []byte("no PEM")) }, false, false, "ca.pem"},
		{"authority's key gone", func(t *testing.T, p Paths) { remove(t, p.CAKey) }, false, false, "ca-key.pem"},
		{"authority's certificate gone", func(t *testing.T, p Paths) { remove(t, p.CA) }, false, false, "ca.pem"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			p, err := EnsureDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			test.harm(t, p)
			got, err := EnsureDir(dir)
			if test.wantErrContaining != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErrContaining) {
					t.Fatalf("error: got %v, want one that names %s", err, test.wantErrContaining)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.NewCA != test.newCA || got.NewServer != test.newServer {
				t.Errorf("got NewCA %v, NewServer %v, want %v, %v", got.NewCA, got.NewServer, test.newCA, test.newServer)
			}
			if again, err := EnsureDir(dir); err != nil || again.NewCA || again.NewServer {
				t.Errorf("after the repair: got %+v, %v; want nothing new", again, err)
			}
		})
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// A server's certificate of an earlier release does for its clients, but not for its like: it is replaced, once.
func TestEnsurePeerDirReplacesAServersCertificate(t *testing.T) {
	dir := t.TempDir()
	if _, err := EnsureDir(dir, "redis-1"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		paths, err := EnsurePeerDir(dir, "redis-1")
		if err != nil {
			t.Fatal(err)
		}
		if paths.NewServer != want || paths.NewCA {
			t.Errorf("got a new certificate %v, a new authority %v, want %v, false", paths.NewServer, paths.NewCA, want)
		}
	}
}
