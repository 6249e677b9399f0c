package wire

import (
	"io"
	"sync"
)

// Frame is one frame as it was read. Payload is valid until the Reader's next
// call.
type Frame struct {
	Header
	Payload []byte
}

const (
	// readSize is how much a Reader asks for at once: several small frames cost
	// one system call.
	readSize = 4096
	// wholeSize is what a frame of the usual limit needs.
	wholeSize = HeaderSize + DefaultMaxPayload
)

// Buffers that Readers have released.
var (
	readBuffers  = sync.Pool{New: func() any { return new([readSize]byte) }}
	wholeBuffers = sync.Pool{New: func() any { return new([wholeSize]byte) }}
)

// Reader cuts a byte stream into frames. It reads from one goroutine at a time
// and never closes what it reads from. It holds one buffer of a few KiB, larger
// for a frame of which more has come: what a header announces costs nothing.
type Reader struct {
	src     io.Reader
	limit   int // longest payload
	version byte
	buf     []byte
	r, w    int // buf[r:w] is read and not yet returned
}

// NewReader reads frames whose payload has at most maxPayload bytes
// (DefaultMaxPayload if 0) from src.
func NewReader(src io.Reader, maxPayload int) *Reader {
	r := &Reader{src: src}
	r.SetLimit(maxPayload)
	return r
}

// SetLimit changes the longest payload taken, from the next frame on.
func (r *Reader) SetLimit(maxPayload int) {
	if maxPayload <= 0 {
		maxPayload = DefaultMaxPayload
	}
	r.limit = min(maxPayload, MaxPayload)
}

// Version is the connection's version: that of the first frame, 0 before it.
func (r *Reader) Version() byte { return r.version }

// Buffered is how many bytes have been read from the source and not returned
// yet. While it is not zero the next frame may be had without the source
// becoming readable again.
func (r *Reader) Buffered() int { return r.w - r.r }

// Release gives the buffer to other Readers if nothing is in it: an idle connection then
// holds none. The last frame's payload is no longer valid.
func (r *Reader) Release() {
	if r.r != r.w {
		return
	}
	giveBack(r.buf)
	r.buf, r.r, r.w = nil, 0, 0
}

// giveBack lets other Readers have a buffer.
func giveBack(buf []byte) {
	switch len(buf) {
	case readSize:
		readBuffers.Put((*[readSize]byte)(buf))
	case wholeSize:
		wholeBuffers.Put((*[wholeSize]byte)(buf))
	}
}

// Next returns the next frame. Its error is io.EOF when the stream ends between
// two frames, io.ErrUnexpectedEOF when it ends within one, a *Error for a
// header that is refused (its payload stays unread, and the stream is of no more
// use), or the source's own. After an error of the source that is temporary, such as a
// deadline, Next goes on where it stopped.
func (r *Reader) Next() (Frame, error) {
	if err := r.fill(HeaderSize); err != nil {
		return Frame{}, err
	}
	h, err := ParseHeader(r.buf[r.r:], r.limit)
	if err != nil {
		return Frame{Header: h}, err
	}
	if r.version == 0 {
		r.version = h.Version
	} else if h.Version != r.version {
		return Frame{Header: h}, Errorf(CodeBadVersion, "frame version %d on a connection of version %d", h.Version, r.version)
	}
	size := HeaderSize + int(h.Length)
	if err := r.fill(size); err != nil {
		return Frame{Header: h}, err
	}
	f := Frame{Header: h, Payload: r.buf[r.r+HeaderSize : r.r+size : r.r+size]}
	r.r += size
	return f, nil
}

// fill makes buf[r:w] hold at least n bytes.
func (r *Reader) fill(n int) error {
	if r.w-r.r >= n {
		return nil
	}
	if r.r == r.w {
		r.r, r.w = 0, 0 // the next read may then fill the whole buffer
	}
	if len(r.buf)-r.r < n {
		r.makeRoom(n)
	}
	for stalls := 0; r.w-r.r < n; {
		if r.w == len(r.buf) {
			r.makeRoom(n)
		}
		got, err := r.src.Read(r.buf[r.w:])
		r.w += got
		if r.w-r.r >= n {
			return nil // err, if any, comes again
		}
		if err == io.EOF && r.w > r.r {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if got > 0 {
			stalls = 0
		} else if stalls++; stalls == 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// makeRoom moves what is unread to the front of the buffer, or, if it fills half of one that is too short for n bytes, of a larger one.
func (r *Reader) makeRoom(n int) {
	to, have := r.buf, r.w-r.r
	switch {
	case len(to) == 0:
		to = readBuffers.Get().(*[readSize]byte)[:]
	case len(to) >= n || 2*have < len(to):
	case n <= wholeSize:
		to = wholeBuffers.Get().(*[wholeSize]byte)[:]
	default:
		to = make([]byte, min(n, 4*len(to)))
	}
	r.w = copy(to, r.buf[r.r:r.w])
	if len(to) != len(r.buf) {
		giveBack(r.buf)
	}
	r.r, r.buf = 0, to
}
