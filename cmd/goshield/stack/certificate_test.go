package stack

import (
	"crypto/tls"
	"net"
	"os"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/redistest"
)

// Row 49: the certificate is replaced on disk. New connections are shown the new one by both gateways, and no device
// that is connected notices.
func TestCertificateIsReplaced(t *testing.T) {
	f := start(t, quickDocument(), redistest.ClusterAddrs())
	l := begin(t, f.bench(40, 200, 10*time.Minute))
	shown := func() string {
		conn, err := (&tls.Dialer{Config: f.tls}).DialContext(t.Context(), "tcp", f.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	const renewed = "renewed"
	if shown() == renewed {
		t.Fatal("the new certificate is there already")
	}
	f.replaceCertificate(t, renewed)
	inARow := 0
	until(t, time.Minute, "both gateways show the new certificate", func() bool {
		if shown() != renewed {
			inARow = 0
			return false
		}
		inARow++
		return inARow > f.Gateways() // the balancer takes turns
	})
	l.goesOn(t, 400)
	l.quiet(t)
}

// replaceCertificate does what an administrator does: each file at once.
func (f *fleet) replaceCertificate(t *testing.T, commonName string) {
	t.Helper()
	ca, err := certs.LoadCA([]byte(f.secret(t, f.paths.CA)), []byte(f.secret(t, f.paths.CAKey)))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(certs.Leaf{CommonName: commonName, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, ValidFor: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{f.paths.ServerKey: key, f.paths.Server: cert} {
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}
