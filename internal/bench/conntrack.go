//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A kernel that filters packets, as any host of containers does, remembers each connection for two minutes after its end, and
// so many at most. When there is no room it drops what would be new, and a benchmark that opens ten thousand a second sees
// connections fail that no contestant has refused.

// conntrackDir is where the kernel tells of it; not there if it does not.
const conntrackDir = "/proc/sys/net/netfilter"

// tracked is how many connections a run leaves behind that opens so many a second.
func (o *options) tracked(churn int) int {
	each := (o.warm + o.window + time.Second).Seconds()
	return int(each*float64(churn)) * o.rounds * len(o.field) * len(o.threads) * len(o.connections)
}

// makeRoom sees to it that the kernel can remember so many connections more, with files in dir; undo puts back what was changed, once they are
// forgotten. The error says what has to be done by somebody who may.
func makeRoom(dir string, more int) (undo func() error, err error) {
	nothing := func() error { return nil }
	file := filepath.Join(dir, "nf_conntrack_max")
	most, err := readNumber(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nothing, nil // nothing is remembered
	}
	count, err2 := readNumber(filepath.Join(dir, "nf_conntrack_count"))
	if err := errors.Join(err, err2); err != nil {
		return nothing, err
	}
	if most == 0 || count+more <= most { // 0: no limit
		return nothing, nil
	}
	if err := writeNumber(file, count+more); err != nil {
		return nothing, fmt.Errorf("the kernel tracks connections, %d now and at most %d, and drops what goes beyond; this run opens up to %d. "+
			"Run it as root, or before it, as root: sysctl -w net.netfilter.nf_conntrack_max=%d (%w)", count, most, more, count+more, err)
	}
	return func() error {
		forgotten(filepath.Join(dir, "nf_conntrack_count"), most*9/10)
		return writeNumber(file, most)
	}, nil
}

// remembered is a little more than what the kernel remembers a connection for after its end.
const remembered = 130 * time.Second

// forgotten waits until no more than so many connections are tracked, for as long as the kernel takes to forget: with the
// old limit and more than that, nobody on this machine could connect.
func forgotten(file string, most int) {
	for end := time.Now().Add(remembered); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if count, err := readNumber(file); err != nil || count <= most {
			return
		}
	}
}

func readNumber(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func writeNumber(file string, n int) error {
	return os.WriteFile(file, []byte(strconv.Itoa(n)+"\n"), 0o644)
}
