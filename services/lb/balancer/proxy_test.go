package balancer

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// A client that begins with a PROXY header of its own gains nothing by it: the header that the gateway reads is lb's,
// and the client's comes behind it, as data.
func TestForgedProxyHeaderIsData(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	r := start(t, testConfig(a.addr))
	r.waitUp(t, 1)
	for _, tt := range []struct {
		name   string
		header *proxyproto.Header
	}{
		{"version 1", proxyproto.HeaderProxyFromAddrs(1, address("203.0.113.9:1"), address("203.0.113.1:8443"))},
		{"version 2", proxyproto.HeaderProxyFromAddrs(2, address("203.0.113.9:1"), address("203.0.113.1:8443"))},
		{"version 2, LOCAL", &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}},
	} {
		forged, err := tt.header.Format()
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range []int{1, len(forged) / 2, len(forged)} {
			conn, err := net.DialTimeout("tcp", r.Addr("device"), patience)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			c := conn.(*net.TCPConn)
			if _, err := c.Write(forged[:cut]); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if want := fmt.Sprintf("a %s\n%s", c.LocalAddr(), forged[:cut]); err != nil || string(got) != want {
				t.Errorf("%s, %d bytes: the gateway got %q, %v; want %q", tt.name, cut, got, err, want)
			}
		}
	}
}

func address(text string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text)) }
