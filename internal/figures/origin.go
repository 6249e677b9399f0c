package figures

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// Here is the origin of figures taken now, with the working directory's commit
// and on this machine. What cannot be found out is "unknown".
func Here(ctx context.Context) Origin {
	return Origin{
		Time:    time.Now(),
		Commit:  commit(ctx),
		Machine: fmt.Sprintf("%d cores, %s, %s, %s", runtime.NumCPU(), processor(), kernel(), runtime.Version()),
	}
}

func commit(ctx context.Context) string {
	rev, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	hash := strings.TrimSpace(string(rev))
	// The figures themselves are written into docs/: a change there is none
	// of the code that was measured.
	status, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--", ":/", ":!/docs").Output()
	if err != nil || len(status) > 0 {
		hash += "+"
	}
	return hash
}

func processor() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return runtime.GOOS
	}
	return "Linux " + strings.TrimSpace(string(release))
}
