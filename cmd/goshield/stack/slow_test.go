package stack

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// slowLine passes bytes to and from a server, after a while if so told.
type slowLine struct {
	ln     net.Listener
	server string
	delay  atomic.Int64 // ns, of each chunk towards the server

	mu    sync.Mutex
	conns []net.Conn
	work  sync.WaitGroup
}

func newSlowLine(t *testing.T, server string) *slowLine {
	t.Helper()
	ln, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	l := &slowLine{ln: ln, server: server}
	l.work.Go(l.accept)
	t.Cleanup(l.close)
	return l
}

// accept ends with the listener.
func (l *slowLine) accept() {
	for {
		in, err := l.ln.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", l.server)
		if err != nil {
			_ = in.Close()
			continue
		}
		l.mu.Lock()
		l.conns = append(l.conns, in, out)
		l.mu.Unlock()
		l.work.Go(func() { l.pass(out, in, &l.delay) })
		l.work.Go(func() { l.pass(in, out, new(atomic.Int64)) })
	}
}

// pass ends when either side does.
func (l *slowLine) pass(to, from net.Conn, delay *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if d := time.Duration(delay.Load()); d > 0 {
			<-time.After(d) // the fault itself
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *slowLine) close() {
	_ = l.ln.Close()
	l.mu.Lock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.work.Wait()
}

// Row 39: Redis takes half a second for everything. Whoever needs it is told so in time; requests do not
// need it.
func TestRedisSlow(t *testing.T) {
	e, err := redisdb.StartEmbedded(anyPort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	line := newSlowLine(t, e.Addr())
	doc := quickDocument()
	doc.Token.RotateProbability = 0
	f := startAsInProduction(t, doc, []string{line.ln.Addr().String()})
	line.delay.Store(int64(500 * time.Millisecond))
	_, err = client.Dial(t.Context(), f.device(t, client.MemoryStore()))
	var refused *wire.Error
	if !errors.As(err, &refused) || refused.Code != wire.CodeAuthUnavailable || refused.RetryAfter <= 0 {
		t.Errorf("a new device: got %v, want auth_unavailable with retry_after_ms", err)
	}
	line.delay.Store(0)
	until(t, time.Minute, "Redis is back", func() bool { return f.metric(t, `goshield_degraded{dependency="redis",node="auth"}`) == "0" })
	l := begin(t, f.bench(40, 400, 5*time.Minute))
	probes := f.connect(t, 10)
	line.delay.Store(int64(500 * time.Millisecond))
	until(t, time.Minute, "auth-service says that it is degraded", func() bool {
		return f.metric(t, `goshield_degraded{dependency="redis",node="auth"}`) == "1"
	})
	// A busy machine makes some requests slow, and not always the same share of them; a Redis on their way makes all of
	// them slow, always.
	percent := 50
	if long { // on a machine that does nothing else
		percent = 99
	}
	until(t, 2*time.Minute, fmt.Sprintf("%d of 100 requests take less than a fifth of what Redis takes", percent), func() bool {
		return percentile(t, probes, percent) < 100*time.Millisecond
	})
	if got := f.metric(t, `goshield_degraded{dependency="redis",node="auth"}`); got != "1" {
		t.Errorf("goshield_degraded = %s: the requests were answered while Redis was fast", got)
	}
	l.goesOn(t, 400)
	l.quiet(t)
	line.delay.Store(0)
}

// connect connects devices until the test ends.
func (f *fleet) connect(t *testing.T, n int) []*client.Client {
	t.Helper()
	var devices []*client.Client
	for range n {
		c := dial(t, f.device(t, client.MemoryStore()))
		t.Cleanup(func() { _ = c.Close() })
		devices = append(devices, c)
	}
	return devices
}

// percentile is what so many of 100 requests take no longer than, of some hundred that devices make in turn.
func percentile(t *testing.T, devices []*client.Client, percent int) time.Duration {
	t.Helper()
	const rounds = 40
	var took []time.Duration
	for range rounds {
		for _, d := range devices {
			began := time.Now()
			if _, err := d.Request(t.Context(), "echo", []byte(`1`)); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	return took[len(took)*percent/100]
}
