//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/leaktest"
)

// TestMain lets the test binary play the roles that the program plays.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			os.Exit(runRole(role, os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		}
	}
	os.Exit(m.Run())
}

// runBench runs the program, but for what needs programs that a test cannot
// expect to find: only the relay of its own takes part.
func runBench(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// benchCopy runs a mode with our own relay only, and reads the settings it found.
func benchCopy[T any](t *testing.T, args ...string) (stdout string, settings []setting[T]) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "figures.json")
	code, stdout, stderr := runBench(t, append(args, "-proxies", copyName, "-threads", "1", "-json", path)...)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var got struct{ Settings []setting[T] }
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Settings) != 1 {
		t.Fatalf("got %d settings, want one", len(got.Settings))
	}
	return stdout, got.Settings
}

func TestRelay(t *testing.T) {
	defer leaktest.None(t)
	stdout, settings := benchCopy[relaying](t, "relay", "-rounds", "1", "-warm", "10ms", "-window", "1s", "-connections", "8")
	if want := "| 8 connections, 1 thread"; !strings.Contains(stdout, want) {
		t.Errorf("no %q in\n%s", want, stdout)
	}
	rounds := settings[0].Rounds[copyName]
	if len(rounds) != 1 {
		t.Fatalf("got %d rounds, want 1", len(rounds))
	}
	for _, round := range rounds {
		for name, m := range map[string]measurement{"closed": round.Closed, "open": round.Open} {
			// Few of them may take less than a tick of the kernel's accounts.
			if m.Done <= 0 || m.Elapsed <= 0 || (m.CPU.total() <= 0 && m.Done > 5000) {
				t.Errorf("%s: got %+v, want round trips that took time", name, m)
			}
			if m.Elapsed < 900*time.Millisecond {
				t.Errorf("%s took %s, want the sum of all turns", name, m.Elapsed)
			}
			if m.P50 <= 0 || m.P99 < m.P50 || m.P999 < m.P99 {
				t.Errorf("%s: quantiles %s, %s, %s do not rise", name, m.P50, m.P99, m.P999)
			}
		}
		if want := round.Closed.rate() / 2; round.Rate != want {
			t.Errorf("the open loop had a rate of %f, want %f", round.Rate, want)
		}
	}
}

func TestConnect(t *testing.T) {
	defer leaktest.None(t)
	_, settings := benchCopy[measurement](t, "connect", "-rounds", "1", "-warm", "10ms", "-window", "1s", "-connections", "4")
	if m := settings[0].Rounds[copyName][0]; m.Done <= 0 || m.P50 <= 0 {
		t.Errorf("got %+v, want connections that took time", m)
	}
}

func TestBulk(t *testing.T) {
	defer leaktest.None(t)
	_, settings := benchCopy[measurement](t, "bulk", "-rounds", "1", "-warm", "10ms", "-window", "1s", "-connections", "2")
	if m := settings[0].Rounds[copyName][0]; m.Bytes <= 0 || m.megabytes() <= 0 {
		t.Errorf("got %+v, want bytes", m)
	}
}

func TestIdle(t *testing.T) {
	defer leaktest.None(t)
	_, settings := benchCopy[idleness](t, "idle", "-rounds", "1", "-window", "10ms", "-connections", "200")
	found := settings[0].Rounds[copyName][0]
	if found.Connections != 200 {
		t.Errorf("got %d connections, want 200", found.Connections)
	}
	// Two goroutines' stacks of 2 KB are the least it can be.
	if each := found.kilobytes(); each < 4 || each > 1000 {
		t.Errorf("got %.1f KB each, want some", each)
	}
	if found.Descriptors < 2*200 {
		t.Errorf("got %d descriptors, want two a connection or more", found.Descriptors)
	}
}

func TestAContestantThatCannotStart(t *testing.T) {
	defer leaktest.None(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lb"), []byte("#!/bin/sh\necho no such key >&2; exit 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := runBench(t, "relay", "-quick", "-proxies", "lb", "-binaries", dir)
	if want := "lb has ended: exit status 2: no such key"; code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("got exit code %d and %q, want 1 and %q", code, stderr, want)
	}
}

func TestArguments(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"no mode", nil, "name a mode"},
		{"unknown mode", []string{"fly"}, `no mode "fly"`},
		{"unknown contestant", []string{"relay", "-proxies", "squid"}, `-proxies: no "squid"`},
		{"only an lb that is not there", []string{"relay", "-proxies", "lb"}, "-proxies: nobody takes part"},
		{"no rounds", []string{"relay", "-rounds", "0"}, "-rounds: must be at least 1, got 0"},
		{"no turn", []string{"relay", "-turns", "0"}, "-turns: must be at least 1, got 0"},
		{"no sign of life", []string{"idle-tls", "-beats", "0"}, "must be positive, got 20s and 0"},
		{"too small a payload", []string{"relay", "-payload", "3"}, "-payload: must be from 16 to 16384, got 3"},
		{"no thread", []string{"idle", "-threads", "1,0"}, "-threads: each must be at least 1"},
		{"no number", []string{"idle", "-connections", "many"}, `"many" is no number`},
		{"an argument too many", []string{"idle", "now"}, `unexpected argument "now"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, _, stderr := runBench(t, test.args...)
			if code != 2 || !strings.Contains(stderr, test.want) {
				t.Errorf("got exit code %d and %q, want 2 and %q", code, stderr, test.want)
			}
		})
	}
}

func TestProcessFigures(t *testing.T) {
	self := []int{os.Getpid()}
	before, err := cpuUsed(self)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		after, err := cpuUsed(self)
		if err != nil {
			t.Fatal(err)
		}
		if after.minus(before).total() >= 5*tick {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("CPU time did not grow from %+v", before)
		}
	}
	debug.FreeOSMemory() // or the block might go where other tests' garbage was
	memory, err := resident(self)
	if err != nil {
		t.Fatal(err)
	}
	const more = 64 << 20
	block := bytes.Repeat([]byte{1}, more)
	grown, err := resident(self)
	if err != nil {
		t.Fatal(err)
	}
	if got := grown - memory; got < more*9/10 {
		t.Errorf("memory grew by %d bytes after %d were written", got, len(block))
	}
	open, err := descriptors(self)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if got, err := descriptors(self); err != nil || got <= open {
		t.Errorf("got %d descriptors (%v), want more than %d", got, err, open)
	}
	none, err := establishedTo(listener.Addr().String())
	if err != nil || none != 0 {
		t.Errorf("got %d connections (%v) where nobody has connected", none, err)
	}
	for want := 1; want <= 2; want++ {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		both := trial{backends: []string{listener.Addr().String(), "127.0.0.1:1"}}
		if got, err := both.links(); err == nil {
			t.Errorf("got %d connections to two backends, of which one has none", got)
		}
		if got, err := establishedTo(listener.Addr().String()); err != nil || got != want {
			t.Errorf("got %d connections (%v), want %d", got, err, want)
		}
	}
	parent, err := family(os.Getppid())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(parent, os.Getpid()) {
		t.Errorf("got children %v of our parent, want %v among them", parent, self)
	}
}

func TestSeries(t *testing.T) {
	for _, test := range []struct {
		name          string
		figures, to   series
		median, ratio float64
	}{
		{"none", nil, series{1}, 0, 0},
		{"odd", series{3, 1, 2}, series{1, 1, 1}, 2, 2},
		{"even", series{4, 1, 2, 3}, series{2, 2, 2, 2}, 2.5, 1.25},
		// Each round against its own: the second was slow for both.
		{"a slow round", series{1, 10, 1}, series{2, 20, 2}, 1, 0.5},
		{"nothing to compare with", series{1}, nil, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.figures.median(); got != test.median {
				t.Errorf("median: got %v, want %v", got, test.median)
			}
			if got := test.figures.ratio(test.to); got != test.ratio {
				t.Errorf("ratio: got %v, want %v", got, test.ratio)
			}
		})
	}
}
