package balancer

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Twice as many clients come as max_connections lets through. Those that are refused cost the others nothing: at
// least nine tenths as many are served as when just as many come as there are places. Were it otherwise, it would be so
// however long clients stay; what a machine takes that is short of time shows less, the longer they do.
func TestTwiceTheConnectionsItCarries(t *testing.T) {
	const longest = 7 * time.Second // that a client stays
	stays := 5
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		stays = 50
	}
	for places, shortest := range map[int]time.Duration{20: 200 * time.Millisecond, 400: 400 * time.Millisecond} {
		best := 0.0
		for each := shortest; each < longest && best < 0.9; each *= 2 {
			best = max(best, shareAtTwice(t, places, each, time.Duration(stays)*each))
		}
		if best < 0.9 {
			t.Errorf("%d places: at twice the load %.2f of the peak is served at best, want 0.9", places, best)
		}
	}
}

// shareAtTwice is how many are served at twice the load, as a part of the peak, while each client stays for so long.
// Rounds of so long are averaged.
func shareAtTwice(t *testing.T, places int, each, length time.Duration) float64 {
	t.Helper()
	cfg := testConfig(startSlow(t, each))
	cfg.ProxyProtocol = false
	cfg.MaxConnections = places
	r := start(t, cfg)
	defer r.Kill()
	r.waitUp(t, 1)
	addr := r.Addr("device")
	gone := func() bool { return r.sum("goshield_lb_connections", nil) == 0 }
	var peak, served int64
	for range 3 {
		peak += servedInTurn(addr, places, length)
		eventually(t, "all have gone", gone)
		served += servedOf(addr, each/time.Duration(2*places), length)
		eventually(t, "all have gone", gone)
	}
	if n := r.sum("goshield_lb_rejected_total", map[string]string{"reason": string(overConnections)}); n == 0 {
		t.Error("nobody was refused: that was no overload")
	}
	share := float64(served) / float64(max(peak, 1))
	t.Attr(fmt.Sprintf("places_%d_each_for_%s", places, each), fmt.Sprintf("%d served at the peak, %d at twice the load: %.2f", peak, served, share))
	return share
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
