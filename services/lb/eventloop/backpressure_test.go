//go:build linux

package eventloop

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stream is what a sender that keeps sending sends: the same from the same seed.
func stream(seed uint64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

// verify reads n bytes of a stream from r, and gives how many were right.
func verify(t *testing.T, r io.Reader, seed uint64, n int) int {
	t.Helper()
	got, want := make([]byte, 32<<10), make([]byte, 32<<10)
	expected := stream(seed)
	for done := 0; done < n; {
		k, err := r.Read(got[:min(len(got), n-done)])
		_, _ = io.ReadFull(expected, want[:k])
		if !bytes.Equal(got[:k], want[:k]) {
			t.Errorf("stream %d: a wrong byte among %d after %d", seed, k, done)
			return done
		}
		done += k
		if err != nil {
			return done
		}
	}
	return n
}

// Readers that stall stop their senders, hold a bounded amount of memory, and have lost
// nothing when they go on. With the limit at 0, every backlog is one chunk; when there are as many as may be, no
// more is held; and where none may be, none is.
func TestStalledReaders(t *testing.T) {
	for _, c := range []struct {
		name        string
		limit, hold int
		most        int // bytes held for twelve readers
	}{
		{"below the limit", queueLimit, holdLimit, 12 * (bufferSize + chunkSize)},
		{"above the limit", 0, holdLimit, 12 * 2 * chunkSize},
		{"full", queueLimit, 2 * chunkSize, 2 * (2*chunkSize + bufferSize + chunkSize)},
		{"nothing may be held", queueLimit, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) { testStalledReaders(t, c.limit, c.hold, c.most) })
	}
}

func testStalledReaders(t *testing.T, limit, hold, most int) {
	const readers, size = 12, 8 << 20
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		var seed [1]byte
		if _, err := io.ReadFull(c, seed[:]); err == nil {
			_, _ = io.CopyN(c, stream(uint64(seed[0])), size)
		}
	})
	r := startOn(t, Options{Loops: 2}, "127.0.0.1:0", up)
	for _, l := range r.loops {
		ask(l, func() int { l.queueLimit, l.holdLimit, l.pipes.limit = limit, hold, 0; return 0 }) // pipes would take their part
	}
	var conns []*net.TCPConn
	for i := range readers {
		c := dialSmall(t, r.addr)
		_, _ = c.Write([]byte{byte(i)})
		conns = append(conns, c)
	}
	stalled(t, r)
	sent := r.Stats().ToClient
	if sent >= readers*size {
		t.Fatal("nothing stalled: the kernel took it all")
	}
	held := 0
	for _, l := range r.loops {
		held += queuedBytes(l)
	}
	t.Logf("%d KiB sent, %d KiB held", sent>>10, held>>10)
	if held > most {
		t.Errorf("%d bytes held for %d stalled readers, want at most %d", held, readers, most)
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			if n := verify(t, c, uint64(i), size); n != size {
				t.Errorf("reader %d got %d bytes, want %d", i, n, size)
			}
			wantEnd(t, c)
		})
	}
	wg.Wait()
	for _, c := range conns {
		_ = c.Close()
	}
	r.result(t, readers-1)
	for i, l := range r.loops {
		if n := queuedBytes(l); n != 0 {
			t.Errorf("loop %d holds %d bytes without a connection", i, n)
		}
	}
}

// dialSmall connects with a small receive buffer, so that a stall is felt soon. It is small
// from the start: a window that shrinks to less than one segment makes the sender wait 200 ms for each.
func dialSmall(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10)
		})
	}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patienceForTests))
	return c.(*net.TCPConn)
}

// stalled waits until no byte has moved for a while.
func stalled(t *testing.T, r *rig) {
	t.Helper()
	last, since := r.Stats(), time.Now()
	eventually(t, "stalled", func() bool {
		if now := r.Stats(); now != last {
			last, since = now, time.Now()
		}
		return last.ToClient > 0 && time.Since(since) > 300*time.Millisecond
	})
}

// queuedBytes asks a loop what its backlogs hold.
func queuedBytes(l *loop) int {
	return ask(l, func() int { return int(l.store.queued.Load()) })
}

// A bulk stream goes through a pipe, and comes back from it when it becomes a
// conversation.
func TestBulkIsSplicedAndBack(t *testing.T) {
	leakCheck(t)
	const size = 64 << 20
	up := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		if n := verify(t, c, 1, size); n != size {
			t.Errorf("upstream got %d bytes, want %d", n, size)
		}
		_, _ = io.Copy(struct{ io.Writer }{c}, c)
	})
	r := startOn(t, Options{Loops: 1}, "127.0.0.1:0", up)
	c := dialRig(t, r)
	data := make([]byte, size) // made beforehand: the sender is the faster one, and reads are full
	_, _ = io.ReadFull(stream(1), data)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	// What was written is still on its way; and where sender and loop share a core, some of it comes in thin reads.
	eventually(t, "all is relayed", func() bool { return r.Stats().ToUpstream == size })
	if s := r.Stats(); s.Spliced < size/8 {
		t.Errorf("%d bytes of %d went through a pipe, want a good part", s.Spliced, size)
	}
	for range 10 * thinReads {
		exchange(t, c, []byte("and now a conversation"))
	}
	before := r.Stats().Spliced
	exchange(t, c, []byte("copied"))
	if after := r.Stats().Spliced; after != before {
		t.Errorf("a conversation is still spliced: %d bytes more", after-before)
	}
}

// A stream that is stuck in its pipe when its reader resets gives the pipe back.
func TestResetWithFullPipe(t *testing.T) {
	leakCheck(t)
	up := serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = io.CopyN(c, stream(0), 1<<40)
	})
	r := startOn(t, Options{Loops: 1}, "127.0.0.1:0", up)
	c := dialRig(t, r)
	_, _ = c.Write([]byte{0})
	if n := verify(t, c, 0, 32<<20); n != 32<<20 {
		t.Fatalf("got %d bytes", n)
	}
	stalled(t, r)
	if r.Stats().Spliced == 0 {
		t.Error("nothing was spliced")
	}
	_ = c.SetLinger(0)
	_ = c.Close()
	if got := r.result(t, 0).Reason; got != ClientReset {
		t.Errorf("reason %v, want ClientReset", got)
	}
	open, idle := ask(r.loops[0], func() int { return r.loops[0].pipes.open }), ask(r.loops[0], func() int { return len(r.loops[0].pipes.idle) })
	if open != idle {
		t.Errorf("%d pipes open, %d of them idle", open, idle)
	}
}

// Idle connections hold a slot of the slab and nothing else.
func TestIdleConnectionsAreSmall(t *testing.T) {
	leakCheck(t)
	if size := unsafe.Sizeof(pair{}); size > 128 {
		t.Errorf("a pair takes %d bytes, want at most 128", size)
	}
	const count = blockSize + 44
	up := serve(t, "127.0.0.1:0", echo)
	r := startOn(t, Options{Loops: 1}, "127.0.0.1:0", up)
	for range count {
		exchange(t, dialRig(t, r), []byte("x"))
	}
	l := r.loops[0]
	if blocks := ask(l, func() int { return len(l.pairs.blocks) }); blocks != 2 {
		t.Errorf("%d blocks of pairs for %d connections, want 2", blocks, count)
	}
	if n := queuedBytes(l); n != 0 {
		t.Errorf("%d bytes of backlog, want none", n)
	}
	if n := ask(l, func() int { return len(l.dials) }); n > batch {
		t.Errorf("%d dials kept, want at most %d", n, batch)
	}
}
