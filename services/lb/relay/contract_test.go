package relay_test

// What every engine promises, the same tests for each: what comes early, ends, resets, both families of addresses.

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/services/lb/relay"
)

// forEach runs a test with a listener of each engine, in front of upstreams that are tried in this order.
func forEach(t *testing.T, s relay.Settings, listen string, upstreams []string, test func(t *testing.T, dial func() *net.TCPConn)) {
	t.Helper()
	for name, e := range engines(s) {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", listen)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(e.Close)
			if err := e.Serve(ln.(*net.TCPListener), inOrder(upstreams)); err != nil {
				t.Fatal(err)
			}
			test(t, func() *net.TCPConn {
				c, err := net.DialTimeout("tcp", ln.Addr().String(), patience)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				_ = c.SetDeadline(time.Now().Add(patience))
				return c.(*net.TCPConn)
			})
		})
	}
}

// inOrder is a director that tries its upstreams one after the other.
type inOrder []string

func (o inOrder) Admit(netip.AddrPort) relay.Placement { return &untried{upstreams: o} }

// untried are the upstreams that one connection has not tried yet.
type untried struct{ upstreams []string }

func (u *untried) Next(error) (netip.AddrPort, bool) {
	if len(u.upstreams) == 0 {
		return netip.AddrPort{}, false
	}
	next := netip.MustParseAddrPort(u.upstreams[0])
	u.upstreams = u.upstreams[1:]
	return next, true
}

func (u *untried) Observe(relay.Event, time.Duration) {}
func (u *untried) Closed(relay.Result)                {}

// behind runs serve for each connection to a new listener, and hangs up after it. The test's end waits for all.
func behind(t *testing.T, listen string, serve func(*net.TCPConn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", listen)
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
				_ = c.SetDeadline(time.Now().Add(patience))
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); serving.Wait() })
	return ln.Addr().String()
}

var contractSettings = relay.Settings{ConnectTimeout: patience, IdleTimeout: time.Hour}

// answerAll answers with what it was sent, once that has ended.
func answerAll(c *net.TCPConn) {
	if got, err := io.ReadAll(c); err == nil {
		_, _ = c.Write(got)
	}
}

func TestContractBothFamilies(t *testing.T) {
	for _, addrs := range []struct{ listen, upstream string }{
		{"127.0.0.1:0", "[::1]:0"}, {"[::1]:0", "127.0.0.1:0"}, {"[::1]:0", "[::1]:0"}, {"[::]:0", "127.0.0.1:0"},
	} {
		t.Run(addrs.listen+" to "+addrs.upstream, func(t *testing.T) {
			up := behind(t, addrs.upstream, answerAll)
			forEach(t, contractSettings, addrs.listen, []string{up}, func(t *testing.T, dial func() *net.TCPConn) {
				sayAll(t, dial(), "over")
			})
		})
	}
}

// What the client sends before any upstream is connected, its end included, is for the one that answers at last.
func TestContractEarlyDataIsNotLost(t *testing.T) {
	nobody, up := porttest.Held(t), behind(t, "127.0.0.1:0", answerAll)
	forEach(t, contractSettings, "127.0.0.1:0", []string{nobody, nobody, up}, func(t *testing.T, dial func() *net.TCPConn) {
		for _, size := range []int{0, 1, 200_000} {
			sayAll(t, dial(), strings.Repeat("e", size))
		}
	})
}

// sayAll sends, ends, and wants the same back.
func sayAll(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != text {
		t.Errorf("sent %d bytes, got %d back, %v", len(text), len(got), err)
	}
}

// An upstream that resets before a byte was relayed has not taken the connection: another one gets it, and all of the
// client's data.
func TestContractRetryAfterAResetAtOnce(t *testing.T) {
	reset := make(chan struct{}, 8) // room for each engine's
	resets := behind(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_ = c.SetLinger(0)
		_ = c.Close()
		reset <- struct{}{}
	})
	chosen := make(chan struct{}, 8)
	up := behind(t, "127.0.0.1:0", func(c *net.TCPConn) {
		chosen <- struct{}{}
		answerAll(c)
	})
	forEach(t, contractSettings, "127.0.0.1:0", []string{resets, up}, func(t *testing.T, dial func() *net.TCPConn) {
		c := dial()
		<-reset
		wait(t, "the other upstream is connected", chosen)
		sayAll(t, c, "to the second")
	})
}

func TestContractEndsGoThroughBothWays(t *testing.T) {
	const last, more = "last words", "and yet it moves"
	heard := make(chan string, 8)
	for _, tt := range []struct {
		name  string
		serve func(*net.TCPConn)
		talk  func(*testing.T, *net.TCPConn)
	}{
		{"the client ends", func(c *net.TCPConn) {
			got, _ := io.ReadAll(c)
			_, _ = io.WriteString(c, string(got)+more)
		}, func(t *testing.T, c *net.TCPConn) {
			_, _ = io.WriteString(c, last)
			_ = c.CloseWrite()
			if got, err := io.ReadAll(c); err != nil || string(got) != last+more {
				t.Errorf("the client got %q, %v", got, err)
			}
		}},
		{"the upstream ends", func(c *net.TCPConn) {
			_, _ = io.WriteString(c, last)
			_ = c.CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil {
				got = []byte(err.Error())
			}
			heard <- string(got)
		}, func(t *testing.T, c *net.TCPConn) {
			if got, err := io.ReadAll(c); err != nil || string(got) != last {
				t.Errorf("the client got %q, %v", got, err)
			}
			_, _ = io.WriteString(c, more)
			_ = c.CloseWrite()
			if got := <-heard; got != more {
				t.Errorf("the upstream got %q, want %q", got, more)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := behind(t, "127.0.0.1:0", tt.serve)
			forEach(t, contractSettings, "127.0.0.1:0", []string{up}, func(t *testing.T, dial func() *net.TCPConn) { tt.talk(t, dial()) })
		})
	}
}

// A reset arrives as a reset, in both directions, while both talk, and when the side that resets had ended.
func TestContractResetsGoThroughBothWays(t *testing.T) {
	for _, ended := range []bool{false, true} {
		name := "in the middle"
		if ended {
			name = "after its end"
		}
		leave := func(c *net.TCPConn) {
			if ended {
				_ = c.CloseWrite()
			}
			_, _ = io.ReadFull(c, make([]byte, 1)) // the other side has got what there was, end included
			_ = c.SetLinger(0)
			_ = c.Close()
		}
		// see reads what there is, says so, and gives how the connection ends after it.
		see := func(c *net.TCPConn) error {
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return err
			}
			if ended {
				if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					return errors.New("no end came")
				}
			}
			for {
				if _, err := c.Write([]byte("x")); err != nil {
					return err
				}
				if ended { // only a write tells of it
					time.Sleep(time.Millisecond)
					continue
				}
				_, err := c.Read(make([]byte, 1))
				return err
			}
		}
		t.Run("by the client, "+name, func(t *testing.T) {
			seen := make(chan error, 8)
			up := behind(t, "127.0.0.1:0", func(c *net.TCPConn) { seen <- see(c) })
			forEach(t, contractSettings, "127.0.0.1:0", []string{up}, func(t *testing.T, dial func() *net.TCPConn) {
				c := dial()
				_, _ = io.WriteString(c, "x")
				leave(c)
				wantReset(t, <-seen)
			})
		})
		t.Run("by the upstream, "+name, func(t *testing.T) {
			up := behind(t, "127.0.0.1:0", func(c *net.TCPConn) {
				_, _ = io.WriteString(c, "x")
				leave(c)
			})
			forEach(t, contractSettings, "127.0.0.1:0", []string{up}, func(t *testing.T, dial func() *net.TCPConn) { wantReset(t, see(dial())) })
		})
	}
}

// wantReset wants an error that a reset makes: of the read or the write that hears of it first.
func wantReset(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the other side saw %v, want a reset", err)
	}
}

func wait(t *testing.T, what string, told <-chan struct{}) {
	t.Helper()
	select {
	case <-told:
	case <-time.After(patience):
		t.Fatalf("%s: not within %s", what, patience)
	}
}
