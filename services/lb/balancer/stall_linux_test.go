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
	"testing"
	"time"

	"github.com/goshield/goshield/internal/limittest"
)

// Clients stop reading while their upstreams send, and upstreams while their clients do, twice as many at once as
// the backlogs have memory for. lb is not killed, by a limit that would; it takes no more memory than it may; it refuses
// new connections, and serves the live ones; and when the others read again, all they were sent arrives, in order.
func TestOpenConnectionsStallAtOnce(t *testing.T) {
	limit, count := uint64(32<<20), 1200
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		limit, count = 64<<20, 2400
	}
	// A limit of a container's is a quarter higher (deploy/kubernetes); beyond that it is killed.
	most := limit * 5 / 4
	env := []string{fmt.Sprintf("GOMEMLIMIT=%d", limit)}
	if !limittest.Race {
		env = append(env, limittest.Memory(most))
	}
	up := startStaller(t, count)
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

	var clients sync.WaitGroup
	defer clients.Wait()
	defer up.goOn()
	for i, c := range conns {
		clients.Go(func() {
			err := binary.Write(c, binary.BigEndian, uint32(i))
			if err == nil {
				err = up.talks[i].stall(c, clientSide, up.read)
			}
			if err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	// All but a few chunks, which were given back when the loop had been full, and asked for by nobody since.
	full := func(r childReport) bool { return r.Held > 0 && r.Held > r.MayHold*15/16 }
	last, since := lb.report(t), time.Now()
	eventually(t, "the backlogs have all they may have, and nothing moves", func() bool {
		now := lb.report(t)
		if now.ToClient != last.ToClient || now.ToUpstream != last.ToUpstream {
			since = time.Now()
		}
		last = now // what is held may be counted after what has moved
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
	up.goOn()
	clients.Wait()
	up.done(t)

	r := lb.report(t)
	t.Attr("stalled", fmt.Sprintf("%d connections at a limit of %d MiB", count, limit>>20))
	t.Attr("memory", fmt.Sprintf("%d KiB held of %d KiB, at most %d MiB in use, %d MiB resident", last.Held>>10, last.MayHold>>10, r.PeakMemory>>20, r.PeakResident>>20))
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

// The sides of a connection.
const (
	clientSide = iota
	upstreamSide
)

// stallTalk is what the two sides of a connection say. The upstream sends, and every second client does, as long as nobody
// reads. Then both end, and read all there is.
type stallTalk struct {
	n         int
	sent, got [2]int // bytes of a side's stream; the side's, and the other's, to write
}

// stallData is what streams are made of. It does not repeat within itself.
var stallData = sync.OnceValue(func() []byte {
	data := make([]byte, 1<<20)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{}), data)
	return data
})

// stallStream is what a side of the nth connection sends, from a byte on: some of it.
func stallStream(n, side, from int) []byte {
	data := stallData()
	at := ((2*n+side)*7919 + from) % len(data)
	return data[at:min(at+16<<10, len(data))]
}

// stall plays a side's part; read is closed when all go on.
func (s *stallTalk) stall(c *net.TCPConn, side int, read <-chan struct{}) error {
	_ = c.SetDeadline(time.Now().Add(3 * patience))
	var sending sync.WaitGroup
	var failed error
	sending.Go(func() { failed = s.send(c, side, read) })
	<-read
	err := s.receive(c, side^1)
	sending.Wait()
	return errors.Join(err, failed)
}

// send sends until read is closed.
func (s *stallTalk) send(c *net.TCPConn, side int, read <-chan struct{}) error {
	for side == upstreamSide || s.n%2 == 1 {
		select {
		case <-read:
			return c.CloseWrite()
		default:
		}
		n, err := c.Write(stallStream(s.n, side, s.sent[side]))
		s.sent[side] += n
		if err != nil {
			return err
		}
	}
	return c.CloseWrite()
}

// receive reads to the end of what a side sends.
func (s *stallTalk) receive(c *net.TCPConn, side int) error {
	for got := make([]byte, 16<<10); ; {
		want := stallStream(s.n, side, s.got[side])
		n, err := c.Read(got[:len(want)])
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("a wrong byte among %d after %d", n, s.got[side])
		}
		if s.got[side] += n; err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// staller is an upstream that echoes single bytes, until it is sent the number of a talk.
type staller struct {
	addr  string
	talks []stallTalk
	goOn  func()
	read  chan struct{} // closed by goOn

	serving sync.WaitGroup
	heard   sync.WaitGroup // a talk each
	mu      sync.Mutex
	errors  []error
}

func startStaller(t *testing.T, talks int) *staller {
	t.Helper()
	ln, err := (&net.ListenConfig{Control: narrowSocket}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &staller{addr: ln.Addr().String(), talks: make([]stallTalk, talks), read: make(chan struct{})}
	for i := range s.talks {
		s.talks[i].n = i
	}
	s.heard.Add(talks)
	s.goOn = sync.OnceFunc(func() { close(s.read) })
	s.serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.serving.Go(func() {
				defer c.Close()
				if err := s.serve(c.(*net.TCPConn)); err != nil {
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
		s.serving.Wait()
	})
	return s
}

func (s *staller) serve(c *net.TCPConn) error {
	first := make([]byte, 4)
	for {
		n, err := io.ReadAtLeast(c, first, 1)
		if err != nil {
			return nil // it only pinged
		}
		if n > 1 {
			if _, err := io.ReadFull(c, first[n:]); err != nil {
				return err
			}
			break
		}
		if _, err := c.Write(first[:1]); err != nil {
			return nil
		}
	}
	n := binary.BigEndian.Uint32(first)
	defer s.heard.Done()
	if err := s.talks[n].stall(c, upstreamSide, s.read); err != nil {
		return fmt.Errorf("upstream %d: %w", n, err)
	}
	return nil
}

// done waits until every client's upstream has heard all, and fails the test for what went wrong.
func (s *staller) done(t *testing.T) {
	t.Helper()
	all := make(chan struct{})
	go func() { // ends with the last talk, which has a deadline
		defer close(all)
		s.heard.Wait()
	}()
	select {
	case <-all:
	case <-time.After(3 * patience):
		t.Fatal("some upstreams have not heard all")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, err := range s.errors {
		t.Error(err)
	}
	for _, talk := range s.talks {
		if talk.sent != talk.got {
			t.Errorf("talk %d: %d bytes sent, %d received", talk.n, talk.sent, talk.got)
		}
	}
}
