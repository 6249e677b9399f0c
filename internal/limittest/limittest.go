// Package limittest gives a process that a test starts less than the test has: limits hold for a whole process, and the
// test needs descriptors and memory of its own.
//
//	cmd.Env = append(os.Environ(), limittest.Descriptors(256))
//	…
//	func TestMain(m *testing.M) { // of the process that is started: the test's own binary
//		if isChild() {
//			limittest.Obey()
package limittest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

const (
	descriptors = "GOSHIELD_TEST_LIMIT_DESCRIPTORS"
	memory      = "GOSHIELD_TEST_LIMIT_MEMORY"
)

// stacks is room for eight threads' stacks, of 8 MiB each, of which they use little.
const stacks = 64 << 20

// Descriptors is what to put into the environment of a process that may have n file descriptors.
func Descriptors(n int) string { return fmt.Sprintf("%s=%d", descriptors, n) }

// Memory is what to put into the environment of a process that may have so many bytes of its own beside those that it has when it
// obeys, and the stacks that libc gives to threads. When it asks for more, the Go runtime ends it.
func Memory(n uint64) string { return fmt.Sprintf("%s=%d", memory, n) }

// Obey puts the limits in the environment into force. It panics where it cannot: the test would show nothing.
func Obey() {
	if n, ok := wanted(descriptors); ok {
		set(syscall.RLIMIT_NOFILE, n)
	}
	if n, ok := wanted(memory); ok {
		// Not RLIMIT_AS: it counts what is only reserved, 64 MiB at a time.
		set(syscall.RLIMIT_DATA, n+status("VmData")+stacks)
	}
}

func wanted(name string) (n uint64, ok bool) {
	text := os.Getenv(name)
	if text == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		panic(fmt.Errorf("%s: %w", name, err))
	}
	return n, true
}

func set(resource int, n uint64) {
	if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
		panic(fmt.Errorf("limit resource %d to %d: %w", resource, n, err))
	}
}

// PeakResident is the most memory that the process has had in RAM, in bytes; 0 where the system does not tell.
func PeakResident() uint64 { return status("VmHWM") }

// status reads a line of /proc/self/status that is in KiB. It is 0 where there is none.
func status(field string) uint64 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte(field+":")); ok {
			n, _ := strconv.ParseUint(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 53)
			return n << 10
		}
	}
	return 0
}

// CPU is what the process has used, user and system.
func CPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(fmt.Errorf("ask for the CPU time used: %w", err))
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
