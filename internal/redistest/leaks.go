package redistest

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/goshield/goshield/internal/leaktest"
)

// VerifyTestMain runs a package's tests and fails if they leave goroutines behind, but
// for one of go-redis's: after dials that failed it tries again each second, and notices
// only then that its pool is closed.
func VerifyTestMain(m *testing.M, more ...goleak.Option) {
	leaktest.Main(m, append(more, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))...)
}
