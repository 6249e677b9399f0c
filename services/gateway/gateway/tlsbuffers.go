package gateway

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"unsafe"
)

// crypto/tls keeps, for as long as a connection lives, the buffers that its handshake grew: some 3.5 KB of the 8 that an idle
// connection takes, for a ClientHello that was read once. It has no call to give them up, so a parked session takes them
// away (docs/adr/0011-handshake-buffers-are-taken-away.md). What is not empty is left alone, and if a version of Go has no such
// fields any more, nothing is done; TestHandshakeBuffersAreFound then says so.

// tlsFields is where tls.Conn has its buffers.
type tlsFields struct {
	rawInput uintptr // bytes.Buffer: records as they came
	input    uintptr // bytes.Reader: of rawInput, what Read has yet to hand out
	hand     uintptr // bytes.Buffer: handshake messages
	found    bool
}

var tlsLayout = findTLSFields(reflect.TypeFor[tls.Conn]())

func findTLSFields(conn reflect.Type) tlsFields {
	f := tlsFields{found: true}
	for _, want := range []struct {
		name string
		kind reflect.Type
		at   *uintptr
	}{
		{"rawInput", reflect.TypeFor[bytes.Buffer](), &f.rawInput},
		{"input", reflect.TypeFor[bytes.Reader](), &f.input},
		{"hand", reflect.TypeFor[bytes.Buffer](), &f.hand},
	} {
		field, ok := conn.FieldByName(want.name)
		f.found = f.found && ok && field.Type == want.kind
		*want.at = field.Offset
	}
	return f
}

// buffers are the connection's; tlsLayout.found.
func (f *tlsFields) buffers(conn *tls.Conn) (rawInput *bytes.Buffer, input *bytes.Reader, hand *bytes.Buffer) {
	base := unsafe.Pointer(conn) //nolint:gosec // fields of these names and types are there
	return (*bytes.Buffer)(unsafe.Add(base, f.rawInput)), (*bytes.Reader)(unsafe.Add(base, f.input)), (*bytes.Buffer)(unsafe.Add(base, f.hand))
}

// releaseTLSBuffers takes away the empty buffers of a connection that nobody reads from: they are crypto/tls's reader's.
func releaseTLSBuffers(conn *tls.Conn) {
	if !tlsLayout.found {
		return
	}
	rawInput, input, hand := tlsLayout.buffers(conn)
	if rawInput.Len() == 0 && input.Len() == 0 {
		*rawInput, *input = bytes.Buffer{}, bytes.Reader{} // input's bytes are rawInput's
	}
	if hand.Len() == 0 {
		*hand = bytes.Buffer{}
	}
}

// tlsHoldsPart reports whether part of a record, or of a message of TLS's own, has come. crypto/tls asks, in its Read from beneath: it
// does so for want of the rest only.
func tlsHoldsPart(conn *tls.Conn) bool {
	if !tlsLayout.found {
		return false
	}
	rawInput, _, hand := tlsLayout.buffers(conn)
	return rawInput.Len() > 0 || hand.Len() > 0
}
