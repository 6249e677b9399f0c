package gateway

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
)

// PROXY protocol, version 2 only (https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt):
// where proxies are trusted, every connection must come from one and begin with a
// header.

const (
	proxyPrefix = 16   // bytes: signature, command, family, length
	proxyMax    = 2048 // bytes after the prefix; addresses take at most 216, the rest are TLVs
)

// errProbe is a connection that carries nothing: a health check. It is closed without a word.
var errProbe = errors.New("health check")

// readProxyHeader sets the device's address. Its error is errProbe, or why the connection is
// refused. Exactly the header is read: what follows is TLS's.
func (s *socket) readProxyHeader(timeout time.Duration) error {
	if !trusted(s.srv.proxies, s.peer) {
		return fmt.Errorf("%v is no trusted proxy", s.peer)
	}
	if err := s.Conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	var buf [proxyPrefix]byte
	n, err := io.ReadFull(s.Conn, buf[:])
	if n == 0 && errors.Is(err, io.EOF) {
		return errProbe
	}
	if err != nil {
		return fmt.Errorf("read the PROXY header: %w", err)
	}
	if !bytes.Equal(buf[:len(proxyproto.SIGV2)], proxyproto.SIGV2) {
		return errors.New("no PROXY v2 header")
	}
	length := int(binary.BigEndian.Uint16(buf[14:]))
	if length > proxyMax {
		return fmt.Errorf("PROXY header of %d bytes", length)
	}
	header := append(make([]byte, 0, proxyPrefix+length), buf[:]...)[:proxyPrefix+length]
	if _, err := io.ReadFull(s.Conn, header[proxyPrefix:]); err != nil {
		return fmt.Errorf("read the PROXY header: %w", err)
	}
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(header), len(header)))
	if err != nil {
		return fmt.Errorf("parse the PROXY header: %w", err)
	}
	if h.Command == proxyproto.LOCAL {
		return errProbe
	}
	source, ok := h.SourceAddr.(*net.TCPAddr)
	if !ok {
		return errors.New("PROXY header without a TCP address")
	}
	s.remote = source.AddrPort().Addr().Unmap()
	return s.Conn.SetReadDeadline(time.Time{})
}

func trusted(proxies []netip.Prefix, a netip.Addr) bool {
	for _, p := range proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// addrOf is the IP address of a connection's end.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
