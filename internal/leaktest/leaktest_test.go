package leaktest

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { Main(m) }

// A goroutine that takes longer to end than goleak waits by itself is no leak.
func TestNoneWaits(t *testing.T) {
	release := make(chan struct{})
	go func() { <-release }() // ends when goleak has given up
	if goleak.Find() == nil {
		t.Error("goleak finds nothing, want a goroutine")
	}
	go func() {
		time.Sleep(time.Second)
		close(release)
	}()
	None(t)
}
