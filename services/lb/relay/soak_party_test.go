package relay_test

// The upstreams of the soak: they are killed and started again.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/porttest"
)

// party is an upstream of the random traffic that can be killed.
type party struct {
	addr  netip.AddrPort
	kills atomic.Int64 // odd while one is going on

	mu    sync.Mutex
	ln    *net.TCPListener
	conns map[*net.TCPConn]struct{}
	errs  []error
	wg    sync.WaitGroup
}

// newParty listens on an address of this machine that nobody else uses: its port, given up
// for a moment, is then not taken by another process meanwhile.
func newParty(t *testing.T) *party {
	t.Helper()
	p := &party{conns: map[*net.TCPConn]struct{}{}}
	ln, err := net.Listen("tcp", porttest.Held(t))
	if err != nil {
		t.Fatal(err)
	}
	p.listen(ln.(*net.TCPListener))
	p.addr = netip.MustParseAddrPort(ln.Addr().String())
	t.Cleanup(func() {
		p.mu.Lock()
		_ = p.ln.Close()
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *party) listen(ln *net.TCPListener) {
	p.ln = ln
	p.wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns[c] = struct{}{}
			kills := p.kills.Load()
			p.mu.Unlock()
			p.wg.Go(func() { p.serve(c, kills) })
		}
	})
}

// serve plays the upstream's part; kills is how many there had been when c was accepted.
func (p *party) serve(c *net.TCPConn, kills int64) {
	defer func() {
		_ = c.Close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}()
	_ = c.SetDeadline(time.Now().Add(talkTime))
	var s script
	if binary.Read(c, binary.BigEndian, &s) != nil {
		return
	}
	if err := play(c, s, false); err != nil && (undisturbed(kills, p.kills.Load()) || errors.Is(err, errWrongByte)) {
		p.mu.Lock()
		p.errs = append(p.errs, fmt.Errorf("%+v: %w", s, err))
		p.mu.Unlock()
	}
}

// undisturbed reports whether no kill happened between two looks at the counts.
func undisturbed(before, after int64) bool { return before == after && before%2 == 0 }

// kill resets all connections and refuses new ones for a moment, as a process that is
// killed and started again.
func (p *party) kill() {
	p.mu.Lock()
	p.kills.Add(1)
	_ = p.ln.Close()
	for c := range p.conns {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	p.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	for {
		ln, err := net.Listen("tcp", p.addr.String())
		if err == nil {
			p.mu.Lock()
			p.listen(ln.(*net.TCPListener))
			p.kills.Add(1)
			p.mu.Unlock()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// wrong fails the test for what upstreams heard that they should not have.
func (p *party) wrong(t *testing.T, engine string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, err := range p.errs {
		t.Errorf("%s: upstream: %v", engine, err)
	}
}
