//go:build unix

package handover

// A successor that is not one; the real thing is tested where there is a process to replace, in
// services/lb.

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNoSuccessor(t *testing.T) {
	for _, tt := range []struct {
		name     string
		exe      string
		script   string
		patience time.Duration
		want     string
	}{
		{"no such program", "/nowhere/lb", "", time.Minute, "start /nowhere/lb: "},
		{"it ends", "/bin/sh", "exit 2", time.Minute, "the new process was not ready (it ended): exit status 2"},
		{"it says something else", "/bin/sh", "echo wrong >&4; exec sleep 60", time.Minute, `(it said "wrong\n"): signal: killed`},
		{"it says nothing", "/bin/sh", "exec sleep 60", 50 * time.Millisecond, "i/o timeout): signal: killed"},
	} {
		_, err := start(tt.exe, []string{tt.exe, "-c", tt.script}, os.Environ(), nil, nil, tt.patience)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// What is sent is received: the sockets, whoever takes them, and the state.
func TestInherit(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := Descriptor(ln.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close() // the socket goes on, in its copy
	addr := ln.Addr().String()
	text, err := encode([]Socket{{addr, fd}}, map[string]int{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	hear, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ready, answer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	if _, err := tell.Write(text); err != nil {
		t.Fatal(err)
	}
	_ = tell.Close()
	t.Setenv("NOTIFY_SOCKET", "")
	in, err := receive(hear, answer, uintptr(fd))
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]int
	if err := in.State(&state); err != nil || state["a"] != 1 {
		t.Errorf("state = %v, %v; want a 1", state, err)
	}
	if in.Listener("127.0.0.1:1") != nil {
		t.Error("a listener that was not left")
	}
	got := in.Listener(addr)
	if got == nil {
		t.Fatal("the listener is not there")
	}
	defer got.Close()
	if in.Listener(addr) != nil {
		t.Error("the same listener twice")
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if s, err := got.Accept(); err != nil {
		t.Error(err)
	} else {
		_ = s.Close()
	}
	if err := in.Ready(); err != nil {
		t.Error(err)
	}
	if word, err := io.ReadAll(ready); err != nil || string(word) != readyWord {
		t.Errorf("the predecessor heard %q, %v; want %q", word, err, readyWord)
	}
}

func TestReceiveRefusals(t *testing.T) {
	for _, text := range []string{"", "{", `{"sockets":[":1"]}`} {
		hear, tell, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, ready, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = tell.WriteString(text)
		_ = tell.Close()
		if _, err := receive(hear, ready, 1<<20); err == nil {
			t.Errorf("%q was taken", text)
		}
		_ = ready.Close()
	}
}

func TestNoPredecessor(t *testing.T) {
	in, err := Receive([]string{"GOSHIELD_ADMIN=:1"})
	if in != nil || err != nil {
		t.Fatalf("Receive = %v, %v; want nothing", in, err)
	}
	if err := in.State(new(int)); in.Listener(":1") != nil || err != nil || in.Ready() != nil {
		t.Error("nothing was left, and something was there")
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	if err := notify(path, 42); err != nil {
		t.Fatal(err)
	}
	_ = manager.SetReadDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 100)
	n, _, err := manager.ReadFrom(buf)
	if got, want := string(buf[:n]), "READY=1\nMAINPID=42\n"; got != want || err != nil {
		t.Errorf("the manager was told %q, %v; want %q", got, err, want)
	}
	if err := notify(path+"x", 42); err == nil {
		t.Error("no error for a manager that is not there")
	}
}
