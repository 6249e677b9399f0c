//go:build linux

package main

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// cores are those a process may run on; none: wherever the benchmark may.
type cores []int

// shareOut gives a proxy of so many threads the last cores of the machine for
// itself, and clients and servers the others. Where none would be left for
// those, all share all.
func shareOut(threads int) (proxy, others cores, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var all cores
	for core := range len(set) * 64 {
		if set.IsSet(core) {
			all = append(all, core)
		}
	}
	if threads >= len(all) {
		return nil, nil, nil
	}
	split := len(all) - threads
	return all[split:], all[:split], nil
}

// run calls f, which starts a process: it and all it starts will run on these
// cores.
func (c cores) run(f func() error) error {
	if len(c) == 0 {
		return f()
	}
	// A child inherits them from the thread that it is forked from.
	runtime.LockOSThread()
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for _, core := range c {
		set.Set(core)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("sched_setaffinity: %w", err)
	}
	err := f()
	if unix.SchedSetaffinity(0, &before) == nil {
		// Else the thread stays locked, and ends with its goroutine.
		runtime.UnlockOSThread()
	}
	return err
}
