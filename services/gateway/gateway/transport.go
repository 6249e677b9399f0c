package gateway

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/parking"
)

// transport carries a session's frames: a byte stream each way. Read and Write
// are called by one goroutine each; CloseWrite after the last Write. Close interrupts
// both and may be called by anybody, more than once.
type transport interface {
	io.ReadWriteCloser
	// CloseWrite says good-bye: the peer reads all that was written, then the end.
	CloseWrite() error
}

// binder is a transport whose channel a proof can be bound to.
type binder interface {
	// binding is the TLS exporter's value; errNoBinding where TLS has none.
	binding() ([32]byte, error)
}

// errNoBinding: TLS 1.2 without extended master secret.
var errNoBinding = errors.New("this TLS connection has no channel binding")

// parkable is a transport whose reader may leave while nothing comes.
type parkable interface {
	// interrupt makes the Read that waits, or the next one, fail with os.ErrDeadlineExceeded, after
	// which nothing is left of what has arrived but part of a frame or of a TLS record. It does not block.
	interrupt()
	// resume takes an interrupt back.
	resume()
	// space is the connection's place in a lot; nil: it cannot be parked.
	space() *parking.Space
	// shrink gives up what only a connection with traffic needs. Nobody reads meanwhile.
	shrink()
}

// attended is a transport that has to do with its session besides Read and Write: so are those on which the device can send other
// things than frames.
type attended interface {
	// attend says whose session it is, before the first Read.
	attend(ses *session)
}

// certified is a transport on which the device may have shown a certificate.
type certified interface {
	// certificateNames are the names in it that can be a client_id: the common name and the
	// URIs. The certificate has been verified; there is none if there are no names.
	certificateNames() []string
}

// stream is TLS or plain TCP.
type stream struct {
	net.Conn // *tls.Conn, or sock itself
	sock     *socket
	place    *parking.Space // nil: sock is none of the operating system's
}

func newStream(conn net.Conn, sock *socket) *stream {
	return &stream{Conn: conn, sock: sock, place: parking.NewSpace(sock.Conn)}
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// interrupt implements parkable. crypto/tls goes on where it stopped after an error that is a timeout and temporary.
func (s *stream) interrupt() { _ = s.sock.Conn.SetReadDeadline(longAgo) } // fails if it is closed, which interrupts, too

// resume implements parkable.
func (s *stream) resume() { _ = s.sock.Conn.SetReadDeadline(time.Time{}) }

// space implements parkable.
func (s *stream) space() *parking.Space { return s.place }

// shrink implements parkable.
func (s *stream) shrink() {
	if t, ok := s.Conn.(*tls.Conn); ok {
		releaseTLSBuffers(t)
	}
}

// Close implements transport. It does not go through TLS, whose own Close waits for a
// peer that does not read.
func (s *stream) Close() error { return s.sock.Close() }

// CloseWrite implements transport.
func (s *stream) CloseWrite() error {
	if t, ok := s.Conn.(*tls.Conn); ok {
		if err := t.CloseWrite(); err != nil {
			return err
		}
	}
	return s.sock.CloseWrite()
}

// binding implements binder. A plain connection has no channel to bind to: 32 zero bytes.
func (s *stream) binding() (b [32]byte, err error) {
	t, ok := s.Conn.(*tls.Conn)
	if !ok {
		return b, nil
	}
	state := t.ConnectionState()
	value, err := state.ExportKeyingMaterial(wire.ExporterLabel, nil, len(b))
	if err != nil {
		return b, errNoBinding
	}
	return [32]byte(value), nil
}

// certificateNames implements certified.
func (s *stream) certificateNames() []string {
	t, ok := s.Conn.(*tls.Conn)
	if !ok {
		return nil
	}
	chains := t.ConnectionState().VerifiedChains
	if len(chains) == 0 {
		return nil
	}
	leaf := chains[0][0]
	names := []string{leaf.Subject.CommonName}
	for _, uri := range leaf.URIs {
		names = append(names, uri.String())
	}
	return names
}
