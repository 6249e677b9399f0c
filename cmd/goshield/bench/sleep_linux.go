package bench

import (
	"syscall"
	"time"
)

// fineSleep is what sleepFine is for: the runtime's own timers wake up to a
// millisecond late, since its poller waits in whole milliseconds.
const fineSleep = 2 * time.Millisecond

// sleepFine sleeps for d, to about 0.1 ms, holding a thread meanwhile. It may return early.
func sleepFine(d time.Duration) {
	ts := syscall.NsecToTimespec(d.Nanoseconds())
	_ = syscall.Nanosleep(&ts, nil) // interrupted: early
}
