// Package leaktest checks that tests leave no goroutines behind, and gives these the time to end that a busy machine
// takes.
//
//	func TestMain(m *testing.M) { leaktest.Main(m) }
package leaktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long goroutines have to end. goleak itself waits for half a second, and a busy machine
// may leave a process alone for longer.
const patience = 30 * time.Second

// Main runs a package's tests and fails if they leave goroutines behind. It does not return.
func Main(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		if err := leaks(options); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines were left behind by successful tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// None fails the test if there are goroutines, besides the test's own.
func None(t testing.TB, options ...goleak.Option) {
	t.Helper()
	if err := leaks(options); err != nil {
		t.Error(err)
	}
}

// clock is fasthttp's, for the Date header: one goroutine of the whole process, which has no end.
const clock = "github.com/valyala/fasthttp.updateServerDate.func1"

// leaks looks again until nothing is left, or patience is over.
func leaks(options []goleak.Option) error {
	options = append(options[:len(options):len(options)], goleak.IgnoreAnyFunction(clock))
	for deadline := time.Now().Add(patience); ; {
		if err := goleak.Find(options...); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
