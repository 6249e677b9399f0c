package link

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/goshield/goshield/sdk/wire"
)

// chunks reads its parts one by one.
type chunks struct {
	rest  []byte
	sizes []byte // lengths of the first parts; then one byte each
}

func (c *chunks) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := 1
	if len(c.sizes) > 0 {
		n, c.sizes = int(c.sizes[0]), c.sizes[1:]
	}
	n = copy(b, c.rest[:min(n, len(c.rest))])
	c.rest = c.rest[n:]
	return n, nil
}

// frames reads all frames of src and returns them with what ended them.
func frames(src io.Reader) (list []Frame, err error) {
	r := reader{src: src, limit: 2048}
	for {
		f, err := r.next()
		if err != nil {
			return list, err
		}
		f.Payload = bytes.Clone(f.Payload)
		list = append(list, f)
	}
}

// FuzzReader: however a stream is cut into reads, the frames are the same and so is
// the end; frames encoded again are what was read.
func FuzzReader(f *testing.F) {
	var all []byte
	for _, g := range golden {
		all = append(all, g.frame...)
	}
	f.Add(all, []byte{1, 200, 3})
	f.Fuzz(func(t *testing.T, stream, sizes []byte) {
		want, wantErr := frames(bytes.NewReader(stream))
		got, err := frames(&chunks{stream, sizes})
		if len(got) != len(want) || err == nil || err.Error() != wantErr.Error() {
			t.Fatalf("in chunks: %d frames, %v; at once: %d frames, %v", len(got), err, len(want), wantErr)
		}
		var again []byte
		for i := range got {
			if got[i].Header != want[i].Header || !bytes.Equal(got[i].Payload, want[i].Payload) {
				t.Fatalf("frame %d in chunks: %v %x; at once: %v %x", i, got[i].Header, got[i].Payload, want[i].Header, want[i].Payload)
			}
			again = append(got[i].Header.Append(again), got[i].Payload...)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Fatalf("encoded again is %x, read was %x", again, stream)
		}
		var mistake *wire.Error
		if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.As(err, &mistake) {
			t.Fatalf("ended with %v", err)
		}
	})
}

// fuzzPayload fuzzes one type's decoder: it neither panics nor answers anything but
// bad_frame, and what it takes is encoded again to the same bytes.
func fuzzPayload(f *testing.F, typ Type, again func(Frame) ([]byte, error)) {
	for _, g := range golden {
		if h, _ := ParseHeader(g.frame, MaxFrame); h.Type == typ {
			f.Add(h.Flags, g.frame[HeaderSize:])
		}
	}
	f.Fuzz(func(t *testing.T, flags uint16, payload []byte) {
		frame := Frame{Header: Header{Type: typ, Flags: flags, Length: uint32(len(payload)), Stream: 2}, Payload: payload}
		got, err := again(frame)
		if err != nil {
			if !errors.Is(err, &wire.Error{Code: wire.CodeBadFrame}) {
				t.Fatalf("got %v, want bad_frame", err)
			}
			return
		}
		if got != nil && !bytes.Equal(got[HeaderSize:], payload) {
			t.Fatalf("encoded again is %x, was %x", got[HeaderSize:], payload)
		}
	})
}

func FuzzHello(f *testing.F) {
	fuzzPayload(f, TypeHello, func(f Frame) ([]byte, error) {
		h, err := f.Hello()
		if err != nil {
			return nil, err
		}
		if h.MaxFrame < MinFrame || h.MaxFrame > MaxFrame || h.MaxStreams < 1 || h.MaxStreams > MaxStreams {
			return nil, errors.New("limits out of range were taken")
		}
		return nil, nil // JSON has many forms
	})
}

func FuzzRequest(f *testing.F) {
	fuzzPayload(f, TypeRequest, func(f Frame) ([]byte, error) {
		r, err := f.Request()
		return AppendRequest(nil, f.Stream, &r), err
	})
}

func FuzzPush(f *testing.F) {
	fuzzPayload(f, TypePush, func(f Frame) ([]byte, error) {
		p, err := f.Push()
		return AppendPush(nil, f.Stream, &p), err
	})
}

func FuzzError(f *testing.F) {
	fuzzPayload(f, TypeError, func(f Frame) ([]byte, error) {
		e, err := f.Error()
		if err != nil {
			return nil, err
		}
		if want := bytes.ToValidUTF8(f.Payload, nil); len(want) != len(f.Payload) {
			return nil, nil // was replaced
		}
		return AppendError(nil, f.Stream, e.Code, e.Message), nil
	})
}

func FuzzPushResult(f *testing.F) {
	fuzzPayload(f, TypePushResult, func(f Frame) ([]byte, error) {
		r, err := f.PushResult()
		return AppendPushResult(nil, f.Stream, r), err
	})
}

func FuzzPing(f *testing.F) {
	fuzzPayload(f, TypePing, func(f Frame) ([]byte, error) {
		data, err := f.ping()
		return AppendPing(nil, data), err
	})
}

// A stream that ends within a frame is told apart from one that ends between
// two, at every offset.
func TestEndOfStream(t *testing.T) {
	whole := append(AppendGoaway(nil), AppendResponse(nil, 2, []byte("body"))...)
	for n := range len(whole) + 1 {
		want := io.ErrUnexpectedEOF
		if n == 0 || n == HeaderSize || n == len(whole) {
			want = io.EOF
		}
		for _, src := range []io.Reader{bytes.NewReader(whole[:n]), iotest.OneByteReader(bytes.NewReader(whole[:n])), iotest.DataErrReader(bytes.NewReader(whole[:n]))} {
			if _, err := frames(src); err != want {
				t.Errorf("cut at %d: got %v, want %v", n, err, want)
			}
		}
	}
}

// The buffer grows to a large frame and is given back after it.
func TestReaderGivesItsBufferBack(t *testing.T) {
	large := AppendResponse(nil, 2, make([]byte, 1<<20))
	stream := append(large, bytes.Repeat(AppendGoaway(nil), 10)...)
	r := reader{src: iotest.HalfReader(bytes.NewReader(stream)), limit: MaxFrame}
	for range 11 {
		if _, err := r.next(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.next(); err != io.EOF {
		t.Fatalf("got %v, want EOF", err)
	}
	if len(r.buf) > 4*readSize {
		t.Errorf("%d bytes are still held", len(r.buf))
	}
}
