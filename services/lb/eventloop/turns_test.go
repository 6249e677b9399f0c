//go:build linux

package eventloop

// One loop, driven by hand: what comes to it in one batch, and when.

import (
	"testing"
	"time"
)

// A byte that ends a long silence begins the idle timeout anew, though the wheel has
// not turned since the silence began.
func TestIdleTimeoutCountsFromTheLastByte(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	const idle = time.Hour // as newWorld sets it
	c := w.open()
	w.later(idle * 99 / 100)
	w.write(c, client, 1)
	for deadline := time.Now().Add(patienceForTests); w.loop.moved[client].Load() < 1; w.turn() {
		if time.Now().After(deadline) {
			t.Fatal("the byte was not relayed")
		}
	}
	w.later(idle / 2)
	w.turn()
	if n := w.loop.count.Load(); n != 1 {
		t.Fatalf("closed half of the idle timeout after a byte")
	}
	w.later(idle)
	w.turn()
	if n := w.loop.count.Load(); n != 0 {
		t.Errorf("open one and a half times the idle timeout after the last byte")
	}
}

// An end and a reset that come together are a reset, though reading tells of the end only.
func TestResetWithTheEnd(t *testing.T) {
	for _, side := range []int{client, upstream} {
		w := newWorld(t)
		c := w.open()
		w.write(c, side, 1)
		w.end(c, side)
		w.reset(c, side)
		for deadline := time.Now().Add(patienceForTests); w.loop.count.Load() > 0; w.turn() {
			if time.Now().After(deadline) {
				t.Fatalf("side %d: the connection is still there", side)
			}
		}
		w.close()
	}
}

// open is a connection with both ends.
func (w *world) open() *conversation {
	w.t.Helper()
	w.connect(0)
	c := w.conns[0]
	for deadline := time.Now().Add(patienceForTests); c.upstream < 0; w.accept() {
		w.turn()
		if time.Now().After(deadline) {
			w.t.Fatal("never connected")
		}
	}
	return c
}

// later has the loop believe that so much time has passed.
func (w *world) later(d time.Duration) { w.engine.epoch = w.engine.epoch.Add(-d) }
