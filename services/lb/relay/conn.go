package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"
)

// conn is one relayed connection: run, on its own goroutine, connects it and
// then copies to the upstream, while toClient copies back.
type conn struct {
	// Static after construction.
	engine    *Engine
	client    *net.TCPConn
	placement Placement
	settings  *Settings

	moved atomic.Bool // a byte moved since the last sweep
	quiet int         // sweeps in a row without one; owned by Engine.sweep

	claim        atomic.Uint32  // unclaimed until a byte moves, or the upstream turns out to be none
	early        []byte         // what was read for an upstream that turned out to be none; owned by run
	sent         atomic.Int64   // when the first byte went to the upstream: nanoseconds after connectedAt, 0: none
	failed       atomic.Uint32  // the Reason of a failed write, Finished if there was none
	clientDone   atomic.Bool    // the client's FIN was passed on, or is about to be
	upstreamDone atomic.Bool    // the upstream's, likewise
	back         sync.WaitGroup // toClient
	sentUp       uint64         // bytes; owned by run
	sentDown     uint64         // bytes; owned by toClient until it has ended
	connectedAt  time.Time      // owned by run; toClient reads it

	mu       sync.Mutex
	upstream *net.TCPConn // nil until connected
	ended    bool         // end was called
	reason   Reason
}

// Who has the last word on whether an upstream is the one.
const (
	unclaimed = iota
	claimed   // a byte was read for it or from it: there is no way back
	forsaken  // it broke the connection before
)

// run ends when both directions have, or when the connection could not be
// placed.
func (c *conn) run() {
	connected := c.connect(nil)
	for connected {
		c.back.Go(c.toClient)
		c.toUpstream()
		c.back.Wait()
		if c.claim.Load() != forsaken {
			break
		}
		connected = c.again()
	}
	failed := Unplaced
	if connected {
		failed = Reason(c.failed.Load())
	}
	c.end(failed, failed != Finished)
	c.placement.Closed(Result{Reason: c.reason, ToUpstream: c.sentUp, ToClient: c.sentDown})
	c.engine.forget(c)
}

// again looks for another upstream, for the present one broke the connection before a byte was relayed.
func (c *conn) again() bool {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return false
	}
	reset(c.upstream)
	c.upstream = nil
	_ = c.client.SetReadDeadline(time.Time{})
	c.mu.Unlock()
	c.claim.Store(unclaimed)
	c.clientDone.Store(false)
	return c.connect(syscall.ECONNRESET)
}

// forsake gives an upstream up that broke the connection, and reports whether another one may be tried.
func (c *conn) forsake() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || !c.claim.CompareAndSwap(unclaimed, forsaken) {
		return false
	}
	_ = c.client.SetReadDeadline(time.Unix(1, 0)) // wakes toUpstream
	return true
}

// connect tries upstreams until one is connected and has its PROXY header. failed is what is wrong with the one before.
func (c *conn) connect(failed error) bool {
	for {
		addr, ok := c.placement.Next(failed)
		if !ok {
			return false
		}
		start := time.Now()
		up, err := c.dial(addr)
		if err != nil {
			failed = err
			continue
		}
		c.connectedAt = time.Now()
		c.mu.Lock()
		c.upstream = up
		ended := c.ended
		c.mu.Unlock()
		if ended { // while we were dialling
			reset(up)
			return false
		}
		c.moved.Store(true)
		c.placement.Observe(Connected, c.connectedAt.Sub(start))
		return true
	}
}

func (c *conn) dial(addr netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: c.settings.ConnectTimeout, KeepAlive: -1}
	up, err := d.DialContext(c.engine.dials, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	tcp := up.(*net.TCPConn)
	if c.settings.ProxyHeader {
		if err := c.writeProxyHeader(tcp); err != nil {
			reset(tcp)
			return nil, fmt.Errorf("send PROXY header to %s: %w", addr, err)
		}
	}
	return tcp, nil
}

func (c *conn) writeProxyHeader(up *net.TCPConn) error {
	h, err := proxyHeader(addrPort(c.client.RemoteAddr()), addrPort(c.client.LocalAddr()))
	if err != nil {
		return err
	}
	// A few bytes into an empty send buffer never wait.
	_, err = up.Write(h)
	return err
}

// proxyHeader is the PROXY protocol's version 2 header (binary) that tells the upstream who the
// client is, and which address it connected to.
func proxyHeader(client, local netip.AddrPort) ([]byte, error) {
	return proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(local)).Format()
}

// toUpstream copies from the client until its FIN or a failure.
func (c *conn) toUpstream() {
	src := newSource(c.client)
	for {
		buf, err := c.early, error(nil)
		if c.early = nil; buf == nil {
			buf, err = src.read()
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return // the upstream was forsaken
			}
			if c.passable(err, c.client, &c.upstreamDone) {
				c.clientDone.Store(true)
				_ = c.upstream.CloseWrite() // fails if it is gone, which toClient will see
			} else {
				c.end(ClientReset, true)
			}
			return
		}
		if c.sentUp == 0 && !c.claim.CompareAndSwap(unclaimed, claimed) && c.claim.Load() == forsaken {
			c.early = bytes.Clone(buf)
			src.release()
			return
		}
		if c.sent.Load() == 0 {
			c.sent.Store(max(1, int64(time.Since(c.connectedAt))))
		}
		n, err := c.upstream.Write(buf)
		src.release()
		c.moved.Store(true)
		c.sentUp += uint64(n)
		c.engine.toUpstream.Add(uint64(n))
		if err != nil {
			c.failed.Store(uint32(UpstreamReset))
			return // what the upstream sent before it broke is still delivered
		}
	}
}

// toClient copies from the upstream until its FIN or a failure.
func (c *conn) toClient() {
	src := newSource(c.upstream)
	for {
		buf, err := src.read()
		if err != nil {
			if c.passable(err, c.upstream, &c.clientDone) {
				c.upstreamDone.Store(true)
				_ = c.client.CloseWrite() // as above
			} else if !c.forsake() {
				c.end(UpstreamReset, true)
			}
			return
		}
		if c.sentDown == 0 {
			c.claim.CompareAndSwap(unclaimed, claimed)
			c.placement.Observe(Answered, time.Since(c.connectedAt)-time.Duration(c.sent.Load()))
		}
		n, err := c.client.Write(buf)
		src.release()
		c.moved.Store(true)
		c.sentDown += uint64(n)
		c.engine.toClient.Add(uint64(n))
		if err != nil {
			c.failed.Store(uint32(ClientReset))
			return
		}
	}
}

// passable reports whether reading from src ended with a FIN, to be passed on, rather
// than with a failure. sentFIN is whether this process has sent its own FIN to src.
func (c *conn) passable(err error, src *net.TCPConn, sentFIN *atomic.Bool) bool {
	if !errors.Is(err, io.EOF) || Reason(c.failed.Load()) != Finished {
		return false
	}
	// In this order: the flag is set before the FIN goes out.
	return !wasReset(src) || sentFIN.Load()
}

// end closes both sides, with a RST if asked to. The first reason counts.
func (c *conn) end(reason Reason, rst bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended, c.reason = true, reason
	for _, side := range []*net.TCPConn{c.client, c.upstream} {
		switch {
		case side == nil:
		case rst:
			reset(side)
		default:
			_ = side.Close()
		}
	}
}

func (c *conn) connectedTo(upstream netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.upstream != nil && addrPort(c.upstream.RemoteAddr()) == upstream
}

// sweep is called by Engine.sweep only.
func (c *conn) sweep() {
	c.mu.Lock()
	connected := c.upstream != nil
	c.mu.Unlock()
	if c.moved.Swap(false) || !connected {
		c.quiet = 0
		return
	}
	if c.quiet++; c.quiet >= sweeps {
		c.end(Idle, false)
	}
}
