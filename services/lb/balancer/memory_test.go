package balancer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Near its memory limit the balancer refuses new connections and serves those it has; then it takes
// new ones again.
func TestShortOfMemory(t *testing.T) {
	a := startGateway(t, "a", "127.0.0.1:0")
	r := start(t, testConfig(a.addr))
	r.waitUp(t, 1)
	c, _ := r.connect(t)
	before := debug.SetMemoryLimit(1 << 20) // less than any process takes
	defer debug.SetMemoryLimit(before)
	eventually(t, "a new connection is refused", func() bool { return !answers(r) })
	if n := r.sum("goshield_lb_rejected_total", map[string]string{"reason": "resources"}); n < 1 {
		t.Errorf("%g refused for want of resources, want one at least", n)
	}
	c.echo(t)
	debug.SetMemoryLimit(before)
	eventually(t, "new connections are taken again", func() bool { return answers(r) })
}

// answers reports whether a new connection is served.
func answers(r *rig) bool {
	c, _, _ := tryConnect(r.Addr("device"))
	if c == nil {
		return false
	}
	_ = c.Close()
	return true
}

// Clients and upstreams that send and do not read cost lb the most memory that a connection can. As many as
// fit into its limit are let in; as many again are refused, the others are served, and no container would
// kill it for what is in use. When they have gone, new ones are let in again.
func TestTwiceWhatFitsIntoMemory(t *testing.T) {
	limit := uint64(32 << 20)
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		limit = 64 << 20
		// Connections that stall have bytes in the kernel, too: a good MiB each. Where the kernel has less for all of TCP, it
		// resets those of other tests.
		if tcpMemory() > 10<<30 {
			limit = 256 << 20
		}
	}
	lb := startChild(t, startSwallower(t), fmt.Sprintf("GOMEMLIMIT=%d", limit))
	live, err := net.Dial("tcp", lb.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if err := ping(live, patience); err != nil {
		t.Fatal(err)
	}

	const most = 8000 // more than fit
	fit := stall(t, lb.addr, most, func(refused int64) bool { return refused > 0 })
	if len(fit.conns) == 0 || fit.refused == 0 {
		t.Fatalf("%d connections let in and %d refused, want some of each", len(fit.conns), fit.refused)
	}
	more := stall(t, lb.addr, len(fit.conns), func(int64) bool { return false })
	t.Attr("fitted", fmt.Sprintf("%d connections into %d MiB; of as many again %d", len(fit.conns), limit>>20, len(more.conns)))
	if let := len(more.conns); let*5 > len(fit.conns) {
		t.Errorf("%d connections let in over the %d that fitted, want a fifth of them at most", let, len(fit.conns))
	}
	if err := ping(live, patience); err != nil {
		t.Errorf("a live connection suffers: %v", err)
	}
	// A limit of a container's is a quarter higher (deploy/kubernetes); beyond that it is killed.
	if peak := lb.report(t).PeakMemory; peak > limit*5/4 {
		t.Errorf("%d KiB in use at most, want %d", peak>>10, limit*5/4>>10)
	}
	for _, c := range append(fit.conns, more.conns...) {
		_ = c.Close()
	}
	eventually(t, "new connections are let in again", func() bool {
		c, err := net.Dial("tcp", lb.addr)
		if err != nil {
			return false
		}
		defer c.Close()
		return ping(c, patience) == nil
	})
	if err := ping(live, patience); err != nil {
		t.Errorf("a live connection suffers: %v", err)
	}
}

// startSwallower starts an upstream that echoes single bytes. When more come at once, it reads no more, and sends.
func startSwallower(t *testing.T) (addr string) {
	t.Helper()
	ln, err := (&net.ListenConfig{Control: narrowSocket}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	over := make(chan struct{})
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				for b := make([]byte, 2); ; {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if n > 1 {
						break
					}
					_, _ = c.Write(b[:n])
				}
				_ = sendAll(c, make([]byte, 64<<10))
				<-over
			})
		}
	})
	t.Cleanup(func() {
		close(over)
		_ = ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

// stalled are connections of which nothing more is taken.
type stalled struct {
	mu      sync.Mutex
	conns   []net.Conn
	refused int64
}

// stall opens up to n connections, a few at a time, and has each send until no more is taken, until enough says that
// so many refusals are enough.
func stall(t *testing.T, addr string, n int, enough func(refused int64) bool) *stalled {
	t.Helper()
	s := &stalled{}
	var tried, refused atomic.Int64
	var workers sync.WaitGroup
	for range 32 {
		workers.Go(func() {
			data := bytes.Repeat([]byte("y"), 64<<10)
			for tried.Add(1) <= int64(n) && !enough(refused.Load()) {
				c, err := (&net.Dialer{Control: narrowSocket}).Dial("tcp", addr)
				if err == nil {
					err = ping(c, patience)
				}
				if err == nil {
					s.mu.Lock()
					s.conns = append(s.conns, c)
					s.mu.Unlock()
					err = sendAll(c, data)
				} else {
					refused.Add(1)
					if c != nil {
						_ = c.Close()
					}
					continue
				}
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("send until it stalls: %v", err)
				}
			}
		})
	}
	workers.Wait()
	s.refused = refused.Load()
	t.Cleanup(func() {
		for _, c := range s.conns {
			_ = c.Close()
		}
	})
	return s
}

// sendAll sends until nothing has been taken for a moment.
func sendAll(c net.Conn, data []byte) error {
	for {
		_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := io.Copy(c, bytes.NewReader(data)); err != nil {
			return err
		}
	}
}
