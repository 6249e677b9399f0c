//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRoomForConnections(t *testing.T) {
	for _, tt := range []struct {
		name        string
		most, count string // "": no such file
		more        int
		want        string // the limit meanwhile
	}{
		{"nothing is tracked", "", "", 1000, ""},
		{"there is room", "1000\n", "400\n", 600, "1000"},
		{"there is none", "1000\n", "401\n", 600, "1001"},
		{"no limit", "0\n", "401\n", 600, "0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "nf_conntrack_max")
			for path, text := range map[string]string{file: tt.most, filepath.Join(dir, "nf_conntrack_count"): tt.count} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			undo, err := makeRoom(dir, tt.more)
			if err != nil {
				t.Fatal(err)
			}
			if got := contents(file); got != tt.want {
				t.Errorf("the limit is %q, want %q", got, tt.want)
			}
			if err := undo(); err != nil {
				t.Fatal(err)
			}
			if got, want := contents(file), strings.TrimSpace(tt.most); got != want {
				t.Errorf("afterwards the limit is %q, want %q", got, want)
			}
		})
	}
}

// The limit is not lowered below what is tracked.
func TestRoomIsTakenBackOnceItIsFree(t *testing.T) {
	dir := t.TempDir()
	file, count := filepath.Join(dir, "nf_conntrack_max"), filepath.Join(dir, "nf_conntrack_count")
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "1000")
	write(count, "401")
	undo, err := makeRoom(dir, 600)
	if err != nil {
		t.Fatal(err)
	}
	write(count, "950")
	undone := make(chan error, 1)
	go func() { undone <- undo() }()
	select {
	case err := <-undone:
		t.Fatalf("the limit was put back with 950 of 1000 tracked: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	write(count, "400")
	if err := <-undone; err != nil || contents(file) != "1000" {
		t.Errorf("afterwards the limit is %q, %v, want 1000", contents(file), err)
	}
}

func contents(file string) string {
	text, _ := os.ReadFile(file) // "" if it is not there
	return strings.TrimSpace(string(text))
}

// Who may not raise the limit is told who can, and to what.
func TestRoomThatCannotBeMade(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nf_conntrack_count"), []byte("5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The superuser may write whatever the mode says, but not a number into what does not take it.
	if err := os.Symlink("/proc/self/limits", filepath.Join(dir, "nf_conntrack_max")); err != nil {
		t.Fatal(err)
	}
	if _, err := makeRoom(dir, 1); err == nil {
		t.Error("no error where the limit cannot be read")
	}
	if err := os.Remove(filepath.Join(dir, "nf_conntrack_max")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/sys/kernel/ngroups_max", filepath.Join(dir, "nf_conntrack_max")); err != nil { // a number that nobody may change
		t.Fatal(err)
	}
	_, err := makeRoom(dir, 1<<20)
	if err == nil || !strings.Contains(err.Error(), "sysctl -w net.netfilter.nf_conntrack_max=1048581") {
		t.Errorf("got %v, want what to do", err)
	}
}
