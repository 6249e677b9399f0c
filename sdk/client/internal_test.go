package client

// What cannot be seen from outside in reasonable time: arithmetic of waits, ids that run over.

import (
	"context"
	"errors"
	"math"
	"net"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

func TestBackoffBounds(t *testing.T) {
	b := backoff{base: 500 * time.Millisecond, limit: 30 * time.Second}
	now := time.Now()
	for attempt := range 200 {
		most := b.limit
		if attempt < 6 {
			most = 500 * time.Millisecond << attempt
		}
		if got := b.next(now, 0); got < 0 || got > most {
			t.Errorf("attempt %d: got %v, want 0 to %v", attempt, got, most)
		}
		now = now.Add(time.Hour)
	}
	b.reset()
	if got := b.next(now, 0); got > 500*time.Millisecond {
		t.Errorf("after reset: got %v, want at most 500ms", got)
	}
}

// A device that is refused at once, over and over, while the virtual address moves is back after at most twice the time
// that takes. Attempts alone made waits of 8 s in an outage of 4 s.
func TestBackoffIsNoLongerThanTheOutage(t *testing.T) {
	const outage = 4 * time.Second
	start := time.Now()
	for range 1000 {
		b := backoff{base: 500 * time.Millisecond, limit: 30 * time.Second}
		now := start
		for now.Sub(start) < outage {
			now = now.Add(b.next(now, 0))
		}
		if back := now.Sub(start); back > 2*outage {
			t.Fatalf("back after %v, want %v at most", back, 2*outage)
		}
	}
}

// Full jitter: waits are spread over the whole range, not around its end.
func TestBackoffSpread(t *testing.T) {
	const n = 2000
	var lower, upper int
	for range n {
		b := backoff{base: time.Second, limit: time.Minute}
		switch wait := b.next(time.Now(), 0); {
		case wait < time.Second/10:
			lower++
		case wait > time.Second*9/10:
			upper++
		}
	}
	// A tenth of 2000 each, give or take seven standard deviations.
	for name, got := range map[string]int{"lowest tenth": lower, "highest tenth": upper} {
		if got < 105 || got > 295 {
			t.Errorf("waits in the %s: got %d of %d, want about %d", name, got, n, n/10)
		}
	}
}

func TestBackoffRetryAfter(t *testing.T) {
	for _, test := range []struct{ ask, least time.Duration }{
		{3 * time.Second, 3 * time.Second},
		{-time.Second, 0},
		{math.MaxInt64, maxRetryAfter},
	} {
		b := backoff{base: time.Second, limit: time.Minute}
		if got := b.next(time.Now(), test.ask); got < test.least || got > test.least+time.Second {
			t.Errorf("asked for %v: got %v, want %v and at most a second", test.ask, got, test.least)
		}
	}
	huge := backoff{base: math.MaxInt64 / 2, limit: math.MaxInt64 - maxRetryAfter.Abs() - 1}
	now := time.Now()
	for range 40 {
		if got := huge.next(now, math.MaxInt64); got < 0 {
			t.Fatalf("overflow: got %v", got)
		}
		now = now.Add(1000 * time.Hour)
	}
}

// testConn is a connection that nobody reads or writes yet.
func testConn(t *testing.T) (*Client, *conn) {
	t.Helper()
	creds, err := loadCredentials(MemoryStore(), wire.ClientID{1})
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{cfg: Config{Version: wire.Version1}, creds: creds, ctx: context.Background(), slots: make(chan struct{}, 10)}
	near, far := net.Pipe()
	t.Cleanup(func() { _ = far.Close() })
	cn := newConn(c, near)
	cn.welcome.MaxFrame = wire.DefaultMaxPayload
	return c, cn
}

// A connection that is made while the client closes ends at once, which is another goroutine's doing.
func TestConnectionMadeWhileClosing(t *testing.T) {
	creds, err := loadCredentials(MemoryStore(), wire.ClientID{1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c := &Client{cfg: Config{Version: wire.Version1}, creds: creds, ctx: ctx}
	for range 100 {
		near, far := net.Pipe()
		cn := newConn(c, near)
		<-cn.ended
		if err := cn.failure(); !errors.Is(err, ErrClosed) {
			t.Errorf("it ended with %v, want ErrClosed", err)
		}
		_ = far.Close()
	}
}

// A request that picked its connection just before that was replaced goes to
// the next one.
func TestSendOnRetiredConnection(t *testing.T) {
	c, cn := testConn(t)
	c.slots <- struct{}{}
	if _, err := cn.send("echo", []byte(`1`)); err != nil {
		t.Fatal(err)
	}
	cn.retire() // waits for that one
	if _, err := cn.send("echo", []byte(`2`)); !errors.Is(err, errNotTaken) {
		t.Errorf("after retire: got %v, want errNotTaken", err)
	}
	cn.fail(ErrClosed)
	if _, err := cn.send("echo", []byte(`3`)); !errors.Is(err, errNotTaken) {
		t.Errorf("after the end: got %v, want errNotTaken", err)
	}
}

// Request ids run over 2³²−1 and skip those in flight.
func TestRequestIDsRunOver(t *testing.T) {
	c, cn := testConn(t)
	cn.lastID = math.MaxUint32 - 1
	cn.calls[0], cn.calls[1] = &call{reply: make(chan reply, 1)}, &call{reply: make(chan reply, 1)}
	for _, want := range []uint32{math.MaxUint32, 2, 3} {
		c.slots <- struct{}{}
		if _, err := cn.send("echo", []byte(`1`)); err != nil {
			t.Fatal(err)
		}
		if cn.lastID != want || cn.calls[want] == nil {
			t.Errorf("id: got %d, want %d", cn.lastID, want)
		}
	}
	c.slots <- struct{}{}
	c.slots <- struct{}{} // of the two made by hand
	cn.fail(ErrClosed)
	if len(c.slots) != 0 {
		t.Errorf("places in flight after the end: got %d, want 0", len(c.slots))
	}
}

// Whoever gives an attempt to connect more time gives each of its steps more.
func TestShareOfConnectTimeout(t *testing.T) {
	for _, test := range []struct{ whole, dial, step time.Duration }{
		{3 * time.Second, 4 * time.Second, 5 * time.Second}, // all of it bounds them, too
		{DefaultConnectTimeout, 4 * time.Second, 5 * time.Second},
		{time.Minute, 24 * time.Second, 30 * time.Second},
	} {
		cfg := Config{ConnectTimeout: test.whole}
		if dial, step := cfg.share(dialTimeout), cfg.share(stepTimeout); dial != test.dial || step != test.step {
			t.Errorf("ConnectTimeout %v: got %v and %v, want %v and %v", test.whole, dial, step, test.dial, test.step)
		}
	}
}
