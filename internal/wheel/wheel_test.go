package wheel

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const tick = 100 * time.Millisecond

// alarm notes when it fired.
type alarm struct {
	Timer
	w     *Wheel
	again int64 // schedule it again so much later; 0: do not

	mu  sync.Mutex
	log []int64
}

// fired is when it fired so far.
func (a *alarm) fired() []int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log
}

func (a *alarm) Expire(now int64) {
	a.mu.Lock()
	a.log = append(a.log, now)
	a.mu.Unlock()
	if a.again > 0 {
		a.w.Schedule(&a.Timer, a, now+a.again)
	}
}

func started(w *Wheel) *Wheel {
	go w.Run()
	return w
}

func TestFiresOnceAtItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := started(New(tick, 16))
		defer w.Close()
		for _, after := range []time.Duration{0, 1, tick - 1, tick, tick + 1, time.Second, 1600 * time.Millisecond, time.Minute, 90 * time.Second} {
			a := &alarm{w: w}
			want := w.Now() + int64(after)
			w.Schedule(&a.Timer, a, want)
			time.Sleep(after + time.Minute)
			synctest.Wait()
			if len(a.fired()) != 1 {
				t.Errorf("timer after %v fired %d times, want once", after, len(a.fired()))
				continue
			}
			if late := time.Duration(a.fired()[0] - want); late < 0 || late > 2*tick {
				t.Errorf("timer after %v fired %v after its time, want from 0 to %v", after, late, 2*tick)
			}
		}
	})
}

func TestScheduleMovesAndStopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := started(New(tick, 16))
		defer w.Close()
		moved, stopped, sooner := &alarm{w: w}, &alarm{w: w}, &alarm{w: w}
		w.Schedule(&moved.Timer, moved, int64(time.Second))
		w.Schedule(&moved.Timer, moved, int64(10*time.Second))
		w.Schedule(&sooner.Timer, sooner, int64(10*time.Second))
		w.Schedule(&sooner.Timer, sooner, int64(time.Second))
		w.Schedule(&stopped.Timer, stopped, int64(time.Second))
		w.Stop(&stopped.Timer)
		w.Stop(&stopped.Timer)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if len(moved.fired()) != 0 || len(stopped.fired()) != 0 || len(sooner.fired()) != 1 {
			t.Errorf("after 5 s: moved, stopped, sooner fired %d, %d, %d times, want 0, 0, 1", len(moved.fired()), len(stopped.fired()), len(sooner.fired()))
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if len(moved.fired()) != 1 {
			t.Errorf("after 11 s: moved fired %d times, want 1", len(moved.fired()))
		}
	})
}

func TestExpireMaySchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := started(New(tick, 8))
		defer w.Close()
		a := &alarm{w: w, again: int64(time.Second)}
		w.Schedule(&a.Timer, a, int64(time.Second))
		time.Sleep(10*time.Second + 5*tick)
		synctest.Wait()
		if n := len(a.fired()); n < 9 || n > 10 {
			t.Errorf("a timer of 1 s that schedules itself fired %d times in 10.5 s, want 9 or 10", n)
		}
	})
}

// A process that slept must find everything that is due, once.
func TestManyTurnsAtOnce(t *testing.T) {
	w := New(tick, 16)
	var alarms [200]alarm
	for i := range alarms {
		at := rand.Int64N(int64(10 * time.Second))
		alarms[i].w = w
		w.Schedule(&alarms[i].Timer, &alarms[i], at)
	}
	w.advance(int64(11 * time.Second))
	w.advance(int64(22 * time.Second))
	for i := range alarms {
		if len(alarms[i].fired()) != 1 {
			t.Errorf("timer %d fired %d times, want once", i, len(alarms[i].fired()))
		}
	}
}

func TestScheduleDoesNotAllocate(t *testing.T) {
	w := New(tick, 16)
	a := &alarm{w: w}
	if n := testing.AllocsPerRun(100, func() { w.Schedule(&a.Timer, a, int64(time.Second)); w.Stop(&a.Timer) }); n != 0 {
		t.Errorf("allocations = %v, want 0", n)
	}
}
