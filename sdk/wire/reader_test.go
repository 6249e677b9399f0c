package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// chunks is a source that returns what it holds piece by piece, then io.EOF or err.
type chunks struct {
	pieces [][]byte
	err    error
}

func (c *chunks) Read(b []byte) (int, error) {
	for len(c.pieces) > 0 && len(c.pieces[0]) == 0 {
		c.pieces = c.pieces[1:]
	}
	if len(c.pieces) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		return 0, io.EOF
	}
	n := copy(b, c.pieces[0])
	c.pieces[0] = c.pieces[0][n:]
	return n, nil
}

// readAll drains a Reader: each frame as text, then the error that ended it.
func readAll(r *Reader) (frames []string, err error) {
	for {
		f, err := r.Next()
		if err != nil {
			return frames, err
		}
		frames = append(frames, fmt.Sprintf("%d %s %s", f.Version, f.Type, f.Payload))
	}
}

// manyFrames is a stream of n frames of lengths from 2 to about most, and what
// each should read as.
func manyFrames(t testing.TB, n, most int) (stream []byte, want []string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		m := Message(&Bye{})
		if i%5 != 0 {
			m = &Response{ID: uint32(i), Body: []byte(`"` + strings.Repeat("x", rng.IntN(most)) + `"`)}
		}
		start := len(stream)
		var err error
		if stream, err = Append(stream, Version1, m); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("1 %s %s", m.Type(), stream[start+HeaderSize:]))
	}
	return stream, want
}

// RELIABILITY row 8: frames split and joined anywhere give the same result.
func TestReaderChunks(t *testing.T) {
	stream, want := manyFrames(t, 60, 9000)
	rng := rand.New(rand.NewPCG(3, 4))
	sources := map[string]io.Reader{
		"all at once":         bytes.NewReader(stream),
		"byte by byte":        iotest.OneByteReader(bytes.NewReader(stream)),
		"half of what it may": iotest.HalfReader(bytes.NewReader(stream)),
		"error with the data": iotest.DataErrReader(bytes.NewReader(stream)),
	}
	for i := range 20 {
		c := &chunks{}
		for rest := stream; len(rest) > 0; {
			n := min(1+rng.IntN(1<<(1+rng.IntN(13))), len(rest))
			c.pieces, rest = append(c.pieces, rest[:n]), rest[n:]
		}
		sources[fmt.Sprintf("at random %d", i)] = c
	}
	for name, src := range sources {
		got, err := readAll(NewReader(src, 0))
		if err != io.EOF {
			t.Errorf("%s: ended with %v, want io.EOF", name, err)
		}
		if len(got) != len(want) {
			t.Fatalf("%s: got %d frames, want %d", name, len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%s: frame %d: got %.60q, want %.60q", name, i, got[i], want[i])
			}
		}
	}
}

// RELIABILITY row 5: a frame that is cut at any offset is never returned.
func TestReaderCutFrame(t *testing.T) {
	first, err := Append(nil, Version1, &PushAck{ID: 1})
	if err != nil {
		t.Fatal(err)
	}
	second, err := Append(nil, Version1, &Request{ID: 2, Token: testToken(t), Service: "echo", Body: []byte(`{"pay":100}`)})
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(second) {
		want := io.ErrUnexpectedEOF
		if cut == 0 {
			want = io.EOF
		}
		for name, src := range map[string]io.Reader{
			"one piece":    bytes.NewReader(append(bytes.Clone(first), second[:cut]...)),
			"byte by byte": iotest.OneByteReader(bytes.NewReader(append(bytes.Clone(first), second[:cut]...))),
		} {
			r := NewReader(src, 0)
			frames, err := readAll(r)
			if len(frames) != 1 || err != want {
				t.Errorf("cut at %d, %s: got %q, %v, want one frame and %v", cut, name, frames, err, want)
			}
			if _, err := r.Next(); err != want {
				t.Errorf("cut at %d, %s, again: got %v, want %v", cut, name, err, want)
			}
		}
	}
}

// RELIABILITY row 6: a payload over the limit is refused from its header alone, and costs no memory.
func TestReaderLimit(t *testing.T) {
	header := []byte{1, byte(TypeRequest), 0xff, 0xff}
	const payload = "the payload must not be read"
	src := &chunks{pieces: [][]byte{header, []byte(payload)}}
	r := NewReader(src, 1000)
	_, err := r.Next()
	if code(err) != CodeFrameTooLarge {
		t.Fatalf("got %v, want frame_too_large", err)
	}
	if left := src.pieces[len(src.pieces)-1]; string(left) != payload {
		t.Errorf("left in the source: got %q, want the whole payload", left)
	}
	if len(r.buf) > readSize {
		t.Errorf("buffer: got %d bytes, want at most %d", len(r.buf), readSize)
	}

	frame, err := Append(nil, Version1, &Response{ID: 1, Body: []byte(`"` + strings.Repeat("x", 2000) + `"`)})
	if err != nil {
		t.Fatal(err)
	}
	r = NewReader(bytes.NewReader(append(bytes.Clone(frame), frame...)), len(frame)-HeaderSize)
	if _, err := r.Next(); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	r.SetLimit(len(frame) - HeaderSize - 1)
	if _, err := r.Next(); code(err) != CodeFrameTooLarge {
		t.Errorf("after the limit was lowered: got %v, want frame_too_large", err)
	}
}

func TestReaderVersions(t *testing.T) {
	good := []byte{1, byte(TypeBye), 0, 0}
	for _, test := range []struct {
		name   string
		second []byte
		want   Code
	}{
		{"version 2", []byte{2, byte(TypeBye), 0, 0}, CodeBadVersion},
		{"version 0", []byte{0, byte(TypeBye), 0, 0}, CodeBadVersion},
		{"unknown type", []byte{1, 0x0e, 0, 0}, CodeBadFrame},
	} {
		r := NewReader(bytes.NewReader(append(bytes.Clone(good), test.second...)), 0)
		if r.Version() != 0 {
			t.Errorf("%s: version before the first frame: %d", test.name, r.Version())
		}
		if _, err := r.Next(); err != nil || r.Version() != Version1 {
			t.Errorf("%s: first frame: %v, version %d", test.name, err, r.Version())
		}
		if _, err := r.Next(); code(err) != test.want {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
}

// A read that times out leaves the Reader as it was: parked connections depend
// on it.
func TestReaderGoesOnAfterTimeout(t *testing.T) {
	stream, want := manyFrames(t, 10, 300)
	timeout := errors.New("timeout")
	var got []string
	src := &chunks{err: timeout}
	r := NewReader(src, 0)
	for _, b := range stream {
		f, err := r.Next()
		if err == nil {
			got = append(got, fmt.Sprintf("%d %s %s", f.Version, f.Type, f.Payload))
		} else if err != timeout {
			t.Fatal(err)
		}
		src.pieces = [][]byte{{b}}
	}
	rest, err := readAll(r)
	if got = append(got, rest...); err != timeout || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %d frames, %v, want %d and %v", len(got), err, len(want), timeout)
	}
}

func TestReaderRelease(t *testing.T) {
	stream, want := manyFrames(t, 2, 300)
	src := &chunks{pieces: [][]byte{stream[:len(stream)-1]}, err: errors.New("timeout")}
	r := NewReader(src, 0)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	r.Release()
	if r.Buffered() != len(stream)-1-len(want[0][len("1 BYE "):])-HeaderSize || r.buf == nil {
		t.Errorf("with half a frame: %d buffered, want the rest kept", r.Buffered())
	}
	src.pieces = [][]byte{stream[len(stream)-1:]}
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	r.Release()
	if r.Buffered() != 0 || r.buf != nil {
		t.Errorf("between frames: %d buffered, buffer of %d bytes, want none", r.Buffered(), len(r.buf))
	}
	src.pieces = [][]byte{stream}
	if frames, _ := readAll(r); strings.Join(frames, "\n") != strings.Join(want, "\n") {
		t.Errorf("after Release: got %q, want %q", frames, want)
	}
}

// RELIABILITY row 6: what a header announces costs nothing; a buffer is no longer than some times what has come.
func TestReaderHoldsWhatHasCome(t *testing.T) {
	for _, payload := range []int{5000, DefaultMaxPayload, 40_000, MaxPayload} {
		frame := append([]byte{1, byte(TypeRequest), byte(payload >> 8), byte(payload)}, bytes.Repeat([]byte{'x'}, payload)...)
		before := []byte{1, byte(TypeBye), 0, 0}
		src := &chunks{err: errors.New("timeout")}
		r := NewReader(src, MaxPayload)
		src.pieces = [][]byte{before}
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		for i, b := range frame {
			src.pieces = [][]byte{{b}}
			f, err := r.Next()
			if came := i + 1; len(r.buf) > max(readSize, 10*came) || len(r.buf) > max(wholeSize, HeaderSize+payload) {
				t.Fatalf("payload of %d: a buffer of %d bytes when %d have come", payload, len(r.buf), came)
			}
			if last := i == len(frame)-1; (err == nil) != last {
				t.Fatalf("payload of %d: byte %d of %d: %v", payload, i+1, len(frame), err)
			}
			if err == nil && !bytes.Equal(f.Payload, frame[HeaderSize:]) {
				t.Errorf("payload of %d: got another one", payload)
			}
		}
	}
}

// Frames of the usual limit take their buffer from others that were released, and give it back.
func TestReaderBuffersAreUsedAgain(t *testing.T) {
	frame := append([]byte{1, byte(TypeRequest), DefaultMaxPayload >> 8, 0}, bytes.Repeat([]byte{'x'}, DefaultMaxPayload)...)
	src := bytes.NewReader(frame)
	r := NewReader(src, 0)
	n := testing.AllocsPerRun(100, func() {
		src.Reset(frame)
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		r.Release()
	})
	if n > 1 { // the race detector has pools lose some
		t.Errorf("allocations a frame = %v, want none", n)
	}
}

// A source that returns neither bytes nor an error does not hang its reader.
func TestReaderNoProgress(t *testing.T) {
	r := NewReader(readerFunc(func([]byte) (int, error) { return 0, nil }), 0)
	if _, err := r.Next(); err != io.ErrNoProgress {
		t.Errorf("got %v, want %v", err, io.ErrNoProgress)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
