package balancer

// All open connections stall at once.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/limittest"
)

// Clients stop reading while their upstreams send, and upstreams while their clients do, twice as many at once as
// the backlogs have memory for. lb is not killed, by a limit that would; it takes no more memory than it may; it refuses
// new connections, and serves the live ones; and when the others read again, all they were sent arrives, in order.
func TestOpenConnectionsStallAtOnce(t *testing.T) {
	limit, count := uint64(32<<20), 2000
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		limit, count = 128<<20, 8000
	}
	// A limit of a container's is a quarter higher (deploy/kubernetes); beyond that it is killed.
	most := limit * 5 / 4
	env := []string{fmt.Sprintf("GOMEMLIMIT=%d", limit)}
	if !limittest.Race {
		env = append(env, limittest.Memory(most))
	}
	up := startStaller(t)
	lb := startChild(t, up.addr, env...)
	live := narrow(t, lb.addr)
	var conns []*net.TCPConn
	for range count {
		conns = append(conns, narrow(t, lb.addr))
	}
	for i, c := range append([]*net.TCPConn{live}, conns...) {
		if err := ping(c, patience); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}

	var talks sync.WaitGroup
	read := make(chan struct{}) // closed when all go on
	for i, c := range conns {
		talks.Go(func() {
			if err := stallAndGoOn(c, uint32(i), read); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	defer talks.Wait()
	defer up.goOn()
	goOn := sync.OnceFunc(func() { close(read) })
	defer goOn()
	full := func(r childReport) bool { return r.Held > 0 && r.Held >= r.MayHold }
	last, since := lb.report(t), time.Now()
	eventually(t, "the backlogs have all they may have, and nothing moves", func() bool {
		if now := lb.report(t); now.ToClient != last.ToClient || now.ToUpstream != last.ToUpstream {
			last, since = now, time.Now()
		}
		return full(last) && time.Since(since) > 200*time.Millisecond
	})
	for range 100 {
		if err := ping(live, patience); err != nil {
			t.Fatalf("a live connection suffers: %v", err)
		}
	}
	for range 20 {
		if c, err := net.Dial("tcp", lb.addr); err == nil {
			if ping(c, patience) == nil {
				t.Error("a new connection is let in")
			}
			_ = c.Close()
		}
	}
	goOn()
	up.goOn()
	talks.Wait()
	up.done(t)

	r := lb.report(t)
	t.Logf("%d connections stalled at %d MiB; %d KiB held of %d; at most %d MiB of memory, %d MiB resident",
		count, limit>>20, last.Held>>10, last.MayHold>>10, r.PeakMemory>>20, r.PeakResident>>20)
	// What a loop had read when the last chunk that there may be was taken comes on top: a batch of 64, a chunk each.
	if over := last.Held - last.MayHold; over > int64(runtime.GOMAXPROCS(0))<<20 {
		t.Errorf("%d bytes held, want %d and no more than a batch of each loop", last.Held, last.MayHold)
	}
	if r.PeakMemory > most {
		t.Errorf("%d KiB in use at most, want %d", r.PeakMemory>>10, most>>10)
	}
	const program = 24 << 20 // its text, which is read from a file
	if !limittest.Race && r.PeakResident > most+program {
		t.Errorf("%d KiB resident at most, want %d", r.PeakResident>>10, (most+program)>>10)
	}
	if err := ping(live, patience); err != nil {
		t.Errorf("a live connection suffers: %v", err)
	}
	eventually(t, "nothing is held any more, and new connections are let in", func() bool {
		c, err := net.Dial("tcp", lb.addr)
		if err != nil {
			return false
		}
		defer c.Close()
		return ping(c, patience) == nil && lb.report(t).Held == 0
	})
}

// stallSize is what each side sends: several times what the kernel keeps for a connection with so narrow sockets.
const stallSize = 256 << 10

// stallData are two streams' worth of bytes that do not repeat.
var stallData = sync.OnceValue(func() []byte {
	data := make([]byte, 2*stallSize)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{}), data)
	return data
})

// stallStream is what a side sends on the nth connection.
func stallStream(n uint32, fromClient bool) []byte {
	at := 2 * n
	if fromClient {
		at++
	}
	at = at * 7919 % stallSize
	return stallData()[at : at+stallSize]
}

// stallAndGoOn begins the nth conversation, and reads once read is closed. Every second client sends, too.
func stallAndGoOn(c *net.TCPConn, n uint32, read <-chan struct{}) error {
	_ = c.SetDeadline(time.Now().Add(3 * patience))
	if err := binary.Write(c, binary.BigEndian, n); err != nil {
		return err
	}
	var sending sync.WaitGroup
	var sent error
	sending.Go(func() {
		if n%2 == 1 {
			_, sent = c.Write(stallStream(n, true))
		}
		sent = errors.Join(sent, c.CloseWrite())
	})
	<-read
	err := wantStream(c, stallStream(n, false))
	sending.Wait()
	return errors.Join(err, sent)
}

// wantStream reads to the end.
func wantStream(r io.Reader, want []byte) error {
	got := make([]byte, 16<<10)
	for {
		n, err := r.Read(got)
		if n > len(want) || !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("wrong bytes, with %d to come", len(want))
		}
		want = want[n:]
		switch {
		case err == io.EOF && len(want) == 0:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%d bytes are missing", len(want))
		case err != nil:
			return err
		}
	}
}

// staller is an upstream that echoes single bytes. When it is sent a number it sends that stream, and reads what the
// client sends when it is told to go on.
type staller struct {
	addr string
	goOn func()
	read chan struct{}

	talks  sync.WaitGroup
	mu     sync.Mutex
	errors []error
}

func startStaller(t *testing.T) *staller {
	t.Helper()
	ln, err := (&net.ListenConfig{Control: narrowSocket}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &staller{addr: ln.Addr().String(), read: make(chan struct{})}
	s.goOn = sync.OnceFunc(func() { close(s.read) })
	s.talks.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.talks.Go(func() {
				defer c.Close()
				if err := s.talk(c.(*net.TCPConn)); err != nil {
					s.mu.Lock()
					s.errors = append(s.errors, err)
					s.mu.Unlock()
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		s.goOn()
		s.talks.Wait()
	})
	return s
}

func (s *staller) talk(c *net.TCPConn) error {
	first := make([]byte, 4)
	for {
		n, err := io.ReadAtLeast(c, first, 1)
		if err != nil {
			return nil // it only pinged
		}
		if n == 1 {
			if _, err := c.Write(first[:1]); err != nil {
				return nil
			}
			continue
		}
		if _, err := io.ReadFull(c, first[n:]); err != nil {
			return err
		}
		break
	}
	n := binary.BigEndian.Uint32(first)
	var want []byte
	if n%2 == 1 {
		want = stallStream(n, true)
	}
	var sending sync.WaitGroup
	var sent error
	sending.Go(func() {
		_, sent = c.Write(stallStream(n, false))
		sent = errors.Join(sent, c.CloseWrite())
	})
	<-s.read
	err := wantStream(c, want)
	sending.Wait()
	if err = errors.Join(err, sent); err != nil {
		return fmt.Errorf("upstream %d: %w", n, err)
	}
	return nil
}

// done fails the test for what went wrong up to now.
func (s *staller) done(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, err := range s.errors {
		t.Error(err)
	}
}

// narrow connects to lb with a socket that takes little, until the test ends.
func narrow(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := (&net.Dialer{Control: narrowSocket, Timeout: patience}).Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// narrowSocket has this side's buffers small, and the other's, which the kernel makes for segments: thousands of
// loopback's would take all the memory there is for TCP.
func narrowSocket(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		for _, o := range [][3]int{
			{syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8 << 10}, {syscall.SOL_SOCKET, syscall.SO_SNDBUF, 8 << 10},
			{syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536},
		} {
			_ = syscall.SetsockoptInt(int(fd), o[0], o[1], o[2])
		}
	})
}
