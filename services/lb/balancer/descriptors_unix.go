//go:build unix

package balancer

import (
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// warnOfDescriptors says so when the process may not open as many files as its
// connections need: two each.
func warnOfDescriptors(log *zap.Logger, maxConnections int) {
	const others = 64
	var limit unix.Rlimit
	need := uint64(2*maxConnections + others)
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < need {
		log.Warn("too few file descriptors for max_connections",
			zap.Int("max_connections", maxConnections), zap.Uint64("needed", need), zap.Uint64("limit", limit.Cur))
	}
}
