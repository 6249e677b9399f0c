package balancer

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Twice as many clients come as max_connections lets through. Those that are refused cost the others nothing: at
// least nine tenths as many are served as when just as many come as there are places.
func TestTwiceTheConnectionsItCarries(t *testing.T) {
	const each = 200 * time.Millisecond // that a client stays
	const places = 20
	length := time.Second
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		length = 10 * time.Second
	}
	cfg := testConfig(startSlow(t, each))
	cfg.ProxyProtocol = false
	cfg.MaxConnections = places
	r := start(t, cfg)
	r.waitUp(t, 1)
	addr := r.Addr("device")

	var peak, served int64
	share := func() float64 { return float64(served) / float64(max(peak, 1)) }
	rounds := 0
	for ; rounds < 15 && (rounds < 3 || share() < 0.9); rounds++ { // a busy machine disturbs single ones
		peak += servedInTurn(addr, places, length)
		eventually(t, "all have gone", func() bool { return r.sum("goshield_lb_connections", nil) == 0 })
		served += servedOf(addr, each/time.Duration(2*places), length)
		eventually(t, "all have gone", func() bool { return r.sum("goshield_lb_connections", nil) == 0 })
	}
	t.Logf("%d served at the peak, %d at twice the load: %.2f; %d rounds", peak, served, share(), rounds)
	if share() < 0.9 {
		t.Errorf("at twice the load %.2f of the peak is served, want 0.9", share())
	}
	if n := r.sum("goshield_lb_rejected_total", map[string]string{"reason": string(overConnections)}); n == 0 {
		t.Error("nobody was refused: that was no overload")
	}
}

// startSlow starts an upstream that returns the first byte after a while, and closes.
func startSlow(t *testing.T, after time.Duration) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				b := make([]byte, 1)
				if _, err := io.ReadFull(c, b); err == nil {
					time.Sleep(after)
					_, _ = c.Write(b)
				}
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); serving.Wait() })
	return ln.Addr().String()
}

// visit reports whether a client was served.
func visit(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return false
	}
	defer c.Close()
	return ping(c, patience) == nil
}

// servedInTurn has n clients come again and again, and counts who is served in so long.
func servedInTurn(addr string, n int, length time.Duration) int64 {
	var served atomic.Int64
	var clients sync.WaitGroup
	end := time.Now().Add(length)
	for range n {
		clients.Go(func() {
			for time.Now().Before(end) {
				if !visit(addr) {
					time.Sleep(time.Millisecond) // the one before has not quite gone
				} else if time.Now().Before(end) {
					served.Add(1)
				}
			}
		})
	}
	clients.Wait()
	return served.Load()
}

// servedOf has a client come each interval, whatever becomes of those before, and counts who is served in so long.
func servedOf(addr string, interval, length time.Duration) int64 {
	var served atomic.Int64
	var clients sync.WaitGroup
	begin := time.Now()
	end := begin.Add(length)
	for due := begin; due.Before(end); due = due.Add(interval) {
		time.Sleep(time.Until(due))
		clients.Go(func() {
			if visit(addr) && time.Now().Before(end) {
				served.Add(1)
			}
		})
	}
	clients.Wait()
	return served.Load()
}
