package limittest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

const asChild = "GOSHIELD_TEST_LIMIT_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(asChild) {
	case "":
		os.Exit(m.Run())
	case "descriptors":
		Obey()
		openAll()
	case "memory":
		Obey()
		hold(256 << 20)
	}
}

// openAll tells how many files can be opened, and why no more.
func openAll() {
	n := 0
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			fmt.Println(n, errors.Is(err, syscall.EMFILE))
			return
		}
		defer f.Close()
		n++
	}
}

// hold writes to so many bytes.
func hold(size int) {
	var held [][]byte
	for range size >> 20 {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	fmt.Println("held", PeakResident() > uint64(size), CPU() > 0)
	runtime.KeepAlive(held)
}

func child(t *testing.T, kind string, env ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), asChild+"="+kind), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestDescriptors(t *testing.T) {
	out, err := child(t, "descriptors", Descriptors(64))
	var opened int
	var short bool
	if _, scanned := fmt.Sscan(out, &opened, &short); err != nil || scanned != nil || opened < 32 || opened > 64 || !short {
		t.Errorf("a process with 64 descriptors: %q, %v, want some files opened and then EMFILE", out, err)
	}
}

func TestMemory(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other systems do not tell what is mapped")
	}
	if out, err := child(t, "memory"); err != nil || out != "held true true\n" {
		t.Errorf("a process without a limit: %q, %v, want 256 MiB held", out, err)
	}
	if out, err := child(t, "memory", Memory(128<<20)); err == nil || strings.Contains(out, "held") {
		t.Errorf("a process that may have 128 MiB more: %.200q, %v, want it to have ended", out, err)
	}
}
