//go:build linux

package main

import (
	"errors"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// measurement is what happened in a window: how much was done, and what it cost
// the processes that were watched.
type measurement struct {
	Fault   string        `json:"fault,omitempty"`
	Done    int64         `json:"done"`            // round trips, connections, handshakes
	Bytes   int64         `json:"bytes,omitempty"` // transferred
	Elapsed time.Duration `json:"elapsed_ns"`
	CPU     usage         `json:"cpu"`
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	P999    time.Duration `json:"p999_ns"`
}

// cpuEach is the CPU time of one of what was done, in microseconds.
func (m measurement) cpuEach() float64 {
	return float64(m.CPU.total().Nanoseconds()) / 1000 / float64(m.Done)
}

// rate is how many were done in a second.
func (m measurement) rate() float64 { return float64(m.Done) / m.Elapsed.Seconds() }

// busy is how many cores the processes kept busy.
func (m measurement) busy() float64 { return m.CPU.total().Seconds() / m.Elapsed.Seconds() }

// megabytes is 10^6 bytes in a second.
func (m measurement) megabytes() float64 { return float64(m.Bytes) / 1e6 / m.Elapsed.Seconds() }

// cpuPerGigabyte is in milliseconds.
func (m measurement) cpuPerGigabyte() float64 {
	return m.CPU.total().Seconds() * 1000 / (float64(m.Bytes) / 1e9)
}

func (m measurement) p50() float64 { return m.P50.Seconds() * 1000 }
func (m measurement) p99() float64 { return m.P99.Seconds() * 1000 }

// window is the time of a measurement, and what it has counted so far. It may be opened again: what it finds then is added.
type window struct {
	open   bool
	begin  time.Time
	cpu    usage
	pids   []int
	counts measurement
	times  *hdrhistogram.Histogram // in nanoseconds
}

// openWindow begins to measure processes.
func openWindow(pids []int) (*window, error) {
	w := &window{pids: pids, times: newHistogram()}
	return w, w.reopen()
}

func (w *window) reopen() (err error) {
	w.open, w.begin = true, time.Now()
	w.cpu, err = cpuUsed(w.pids)
	return err
}

// openOr opens an earlier window again, or a new one if there is none.
func openOr(earlier *window, pids []int) (*window, error) {
	if earlier == nil {
		return openWindow(pids)
	}
	return earlier, earlier.reopen()
}

// count counts what is done while the window is open.
func (w *window) count() {
	if w.open {
		w.counts.Done++
	}
}

// wanting is whether the window must stay open for longer than it was to: nothing
// has been done yet, as on a machine that does much else.
func (w *window) wanting() bool {
	return w.counts.Done == 0 && w.counts.Bytes == 0 && time.Since(w.begin) < patience
}

// close ends the window. Times may still be recorded, of what began in it.
func (w *window) close() error {
	w.open = false
	w.counts.Elapsed += time.Since(w.begin)
	after, err := cpuUsed(w.pids)
	w.counts.CPU = w.counts.CPU.plus(after.minus(w.cpu))
	return err
}

// record adds a time; one longer than the histogram holds counts as the longest.
func (w *window) record(d time.Duration) {
	_ = w.times.RecordValue(min(d, longest).Nanoseconds()) // within its range
}

// result is the whole measurement, of a closed window.
func (w *window) result() (measurement, error) {
	m := w.counts
	if m.Done == 0 && m.Bytes == 0 {
		return measurement{}, errors.New("nothing was done in the window")
	}
	at := func(q float64) time.Duration { return time.Duration(w.times.ValueAtQuantile(q)) }
	m.P50, m.P99, m.P999 = at(50), at(99), at(99.9)
	return m, nil
}

// Times are recorded to three digits.
const longest = time.Minute

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, longest.Nanoseconds(), 3)
}
