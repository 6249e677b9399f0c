// Package leaktest looks for goroutines that tests leave behind, and gives them time to end: goleak by itself
// waits for half a second, and a busy machine may leave a process alone for longer.
package leaktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const patience = 30 * time.Second

// Main runs a package's tests and fails if they leave goroutines behind. It does not return.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := leaks(); err != nil {
			fmt.Fprintln(os.Stderr, "tests left goroutines behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// None fails the test if there are goroutines besides its own.
func None(t testing.TB) {
	t.Helper()
	if err := leaks(); err != nil {
		t.Error(err)
	}
}

func leaks() error {
	for deadline := time.Now().Add(patience); ; {
		if err := goleak.Find(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
