package balancer

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/limittest"
)

// A balancer that runs out of file descriptors serves the connections it has, does not spin, and takes new
// ones when others have ended.
func TestOutOfDescriptors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		echoAll(ln)
	}()
	t.Cleanup(func() { _ = ln.Close(); <-echoed })
	started := time.Now()
	lb := startChild(t, ln.Addr().String(), limittest.Descriptors(256))

	// 256 descriptors are enough for about 120 connections; the kernel takes more.
	var conns []net.Conn
	for range 250 {
		c, err := net.Dial("tcp", lb.addr)
		if err != nil {
			continue // reset at once: also a way to say that there is no room
		}
		defer c.Close()
		conns = append(conns, c)
	}
	live := conns[0]
	if err := ping(live, patience); err != nil {
		t.Fatalf("the first connection: %v", err)
	}
	before, begin := lb.report(t), time.Now()
	for time.Since(begin) < 1500*time.Millisecond { // out of descriptors all the while
		if err := ping(live, patience); err != nil {
			t.Fatalf("a live connection suffers: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	after, took := lb.report(t), time.Since(begin)
	for _, c := range conns[1:] {
		_ = c.Close()
	}
	eventually(t, "new connections are taken again", func() bool {
		c, err := net.Dial("tcp", lb.addr)
		if err != nil {
			return false
		}
		defer c.Close()
		return ping(c, patience) == nil
	})
	if after.AcceptErrors == 0 {
		t.Error("no accept failed: the descriptors were not used up")
	}
	// From 5 ms on the pauses double to a second; those of before the first report are counted, too.
	if most := uint64(100 + 10*time.Since(started).Seconds()); after.AcceptErrors > most {
		t.Errorf("%d failed accepts in %s, want a back-off: %d at most", after.AcceptErrors, time.Since(started), most)
	}
	if cpu := after.CPU - before.CPU; cpu > took/2 {
		t.Errorf("%s of CPU in %s, want no spinning", cpu, took)
	}
}

// echoAll ends when ln is closed and every connection has ended.
func echoAll(ln net.Listener) {
	ended := make(chan struct{})
	n := 0
	for {
		c, err := ln.Accept()
		if err != nil {
			break
		}
		n++
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
			ended <- struct{}{}
		}()
	}
	for range n {
		<-ended
	}
}
