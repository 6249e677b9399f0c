//go:build linux

package eventloop

import (
	"encoding/binary"
	"net/netip"
)

// The PROXY protocol, version 2: twelve bytes of signature, version and command,
// family and transport, the length of the rest; then both addresses and both ports.
// https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, PROXY
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
)

// appendProxyHeader appends the header that tells the upstream who the client
// is and which address it connected to: 28 bytes over IPv4, 52 over IPv6.
func appendProxyHeader(b []byte, client, local netip.AddrPort) []byte {
	b = append(b, proxySignature...)
	b = append(b, proxyCommand)
	if client.Addr().Is4() && local.Addr().Is4() {
		from, to := client.Addr().As4(), local.Addr().As4()
		b = append(b, proxyTCP4, 0, 12)
		b = append(b, from[:]...)
		b = append(b, to[:]...)
	} else {
		from, to := client.Addr().As16(), local.Addr().As16()
		b = append(b, proxyTCP6, 0, 36)
		b = append(b, from[:]...)
		b = append(b, to[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, client.Port())
	return binary.BigEndian.AppendUint16(b, local.Port())
}
