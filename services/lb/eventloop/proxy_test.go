//go:build linux

package eventloop

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/goshield/goshield/internal/porttest"
)

func TestProxyHeaderGolden(t *testing.T) {
	for _, c := range []struct{ client, local, want string }{
		{"192.0.2.1:1000", "198.51.100.2:443", "0d0a0d0a000d0a515549540a" + "2111000c" + "c0000201" + "c6336402" + "03e8" + "01bb"},
		{"[2001:db8::1]:1000", "[2001:db8::2]:443", "0d0a0d0a000d0a515549540a" + "21210024" +
			"20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "03e8" + "01bb"},
		{"192.0.2.1:1000", "[2001:db8::2]:443", "0d0a0d0a000d0a515549540a" + "21210024" +
			"00000000000000000000ffffc0000201" + "20010db8000000000000000000000002" + "03e8" + "01bb"},
	} {
		got := hex.EncodeToString(appendProxyHeader(nil, netip.MustParseAddrPort(c.client), netip.MustParseAddrPort(c.local)))
		if got != c.want {
			t.Errorf("%s to %s: got %s, want %s", c.client, c.local, got, c.want)
		}
	}
}

// The header comes first, whether the client speaks or not, and the same again to
// the next upstream.
func TestProxyHeaderGoesFirst(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"} {
		t.Run(listen, func(t *testing.T) {
			leakCheck(t)
			up := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
				b := bufio.NewReader(c)
				h, err := proxyproto.Read(b)
				if err != nil {
					_, _ = fmt.Fprintf(c, "no header: %v", err)
					return
				}
				_, _ = fmt.Fprintf(c, "%v %v\n", h.SourceAddr, h.DestinationAddr)
				_, _ = io.Copy(struct{ io.Writer }{c}, b)
			})
			r := startOn(t, Options{Loops: 1, Settings: Settings{ProxyHeader: true}}, listen, porttest.Held(t), up)
			_, port, _ := net.SplitHostPort(r.addr)
			host := "127.0.0.1"
			if listen == "[::1]:0" {
				host = "::1"
			}
			for _, speak := range []bool{false, true} {
				c := dialTo(t, net.JoinHostPort(host, port))
				if speak {
					_, _ = io.WriteString(c, "hello")
				}
				want := fmt.Sprintf("%v %v\n", c.LocalAddr(), c.RemoteAddr())
				if speak {
					want += "hello"
				}
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
					t.Errorf("speaking %v: got %q, %v; want %q", speak, got, err, want)
				}
			}
		})
	}
}
