//go:build linux

package eventloop

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/limittest"
)

// childUpstream makes the test binary a relay to there.
const childUpstream = "GOSHIELD_TEST_RELAY_UPSTREAM"

func TestMain(m *testing.M) {
	if upstream := os.Getenv(childUpstream); upstream != "" {
		os.Exit(relayChild(upstream))
	}
	os.Exit(m.Run())
}

// relayChild relays until its standard input ends, and tells its address and then its
// accept errors.
func relayChild(upstream string) int {
	limittest.Obey()
	e := New(Options{Log: zap.NewNop(), Loops: 2, Settings: Settings{ConnectTimeout: 60 * time.Second}})
	defer e.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(ln.Addr())
	d := &director{changed: make(chan struct{}), upstreams: []netip.AddrPort{netip.MustParseAddrPort(upstream)}}
	if err := e.Serve(ln.(*net.TCPListener), d); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	fmt.Println(e.Stats().AcceptErrors)
	return 0
}

// Out of descriptors, the engine serves the connections it has, does not spin, and takes the
// waiting ones when others end.
func TestOutOfDescriptors(t *testing.T) {
	leakCheck(t)
	const limit, clients = 64, 100
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), limittest.Descriptors(limit), childUpstream+"="+serve(t, "127.0.0.1:0", echo))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = in.Close() }()
	told := bufio.NewScanner(out)
	told.Scan()
	addr := told.Text()

	var conns []*net.TCPConn
	for i := range clients {
		c := dialTo(t, addr)
		_, _ = fmt.Fprintf(c, "%03d", i)
		conns = append(conns, c)
	}
	var served []int
	eventually(t, "some connections served", func() bool {
		served = append(served, servedOf(conns)...)
		return len(served) > 0
	})
	if len(served) == 0 || len(served) > limit/2 {
		t.Fatalf("%d of %d connections served with %d descriptors", len(served), clients, limit)
	}
	before := cpuTime(t, cmd.Process.Pid)
	began := time.Now()
	for n := 0; time.Since(began) < time.Second; n++ { // live connections are served all the while, at little cost
		exchange(t, conns[served[n%len(served)]], []byte("x"))
		time.Sleep(20 * time.Millisecond)
	}
	used, took := cpuTime(t, cmd.Process.Pid)-before, time.Since(began)
	if used > took*7/10 {
		t.Errorf("%v of CPU time in %v without descriptors: it spins", used, took)
	}

	left := map[int]bool{}
	for i := range conns {
		left[i] = true
	}
	for deadline := time.Now().Add(patienceForTests); len(left) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections never served", len(left))
		}
		for _, i := range served {
			_ = conns[i].Close()
			delete(left, i)
		}
		var waiting []*net.TCPConn
		var index []int
		for i := range conns {
			if left[i] {
				waiting, index = append(waiting, conns[i]), append(index, i)
			}
		}
		served = served[:0]
		for _, k := range servedOf(waiting) {
			served = append(served, index[k])
		}
	}
	_ = in.Close()
	told.Scan()
	if n, err := strconv.Atoi(told.Text()); err != nil || n == 0 {
		t.Errorf("%q accept errors, want some", told.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("relay: %v", err)
	}
}

// servedOf gives the connections on which the answer to the three bytes sent has arrived.
func servedOf(conns []*net.TCPConn) []int {
	var served []int
	got := make([]byte, 3)
	for i, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		_, err := io.ReadFull(c, got)
		_ = c.SetReadDeadline(time.Now().Add(patienceForTests))
		if err == nil {
			served = append(served, i)
		}
	}
	return served
}

// cpuTime is what a process has used, user and system.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
}
