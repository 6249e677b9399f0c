package link

import "io"

// readSize is how much a reader asks for at once: many small frames cost one
// system call.
const readSize = 32 << 10

// reader cuts a byte stream into frames. It holds one buffer, grown to the frame
// being read and never beyond the limit.
type reader struct {
	src   io.Reader
	limit int // longest payload
	names names
	buf   []byte
	r, w  int // buf[r:w] is read and not yet returned
}

// next returns the next frame, valid until the call after it. The error is io.EOF
// when the stream ends between two frames, io.ErrUnexpectedEOF when it ends
// within one, a *wire.Error for a header that is refused, or the source's own.
func (r *reader) next() (Frame, error) {
	if err := r.fill(HeaderSize); err != nil {
		return Frame{}, err
	}
	h, err := ParseHeader(r.buf[r.r:], r.limit)
	if err != nil {
		return Frame{Header: h}, err
	}
	size := HeaderSize + int(h.Length)
	if err := r.fill(size); err != nil {
		return Frame{Header: h}, err
	}
	f := Frame{Header: h, Payload: r.buf[r.r+HeaderSize : r.r+size : r.r+size], names: &r.names}
	r.r += size
	return f, nil
}

// fill makes buf[r:w] hold at least n bytes.
func (r *reader) fill(n int) error {
	if r.w-r.r >= n {
		return nil
	}
	if len(r.buf)-r.r < n || r.r == r.w {
		r.makeRoom(n)
	}
	for stalls := 0; r.w-r.r < n; {
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

// makeRoom moves what is unread to the front of a buffer of at least n bytes. One
// that had to grow for a large frame is given back once nothing large is left.
func (r *reader) makeRoom(n int) {
	to := r.buf
	if want := max(n, r.w-r.r, readSize); len(to) < n || len(to) > 4*want {
		to = make([]byte, want)
	}
	r.w = copy(to, r.buf[r.r:r.w])
	r.r, r.buf = 0, to
}
