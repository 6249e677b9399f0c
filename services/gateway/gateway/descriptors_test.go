package gateway

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/wire"
)

// A gateway that runs out of file descriptors, in a process of its own that may open few.

// childConfig holds the configuration of a gateway that the test binary is to be; childDescriptors is how many it may have.
const (
	childConfig      = "GOSHIELD_TEST_GATEWAY_CHILD"
	childDescriptors = 96
)

// runAsChild, in the child process, runs a gateway until standard input ends. It tells its address, and then how often
// it could not accept and how much CPU time it took meanwhile, each time it reads a line and at the end.
func runAsChild() bool {
	text := os.Getenv(childConfig)
	if text == "" {
		return false
	}
	limit := syscall.Rlimit{Cur: childDescriptors, Max: childDescriptors}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		panic(err)
	}
	cfg := DefaultConfig()
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		panic(err)
	}
	var failed atomic.Int64
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zapcore.WarnLevel),
		zap.Hooks(func(e zapcore.Entry) error {
			if e.Message == "cannot accept" {
				failed.Add(1)
			}
			return nil
		}))
	s, err := New(cfg, service.Deps{Log: log, Metrics: prometheus.NewRegistry()})
	if err != nil {
		panic(err)
	}
	if err := s.Start(); err != nil {
		panic(err)
	}
	fmt.Println(s.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var usage syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
			panic(err)
		}
		fmt.Println(failed.Load(), usage.Utime.Nano()+usage.Stime.Nano())
	}
	s.Kill()
	return true
}

// RELIABILITY row 15: without descriptors a gateway serves who is there and accepts again when there are some, and does
// not spin until then.
func TestOutOfDescriptors(t *testing.T) {
	w := newWorld(t, testDoc())
	text, err := json.Marshal(w.config("gw-1"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), childConfig+"="+string(text))
	child.Stderr = os.Stderr
	in, err1 := child.StdinPipe()
	out, err2 := child.StdoutPipe()
	if err := errors.Join(err1, err2, child.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	lines := bufio.NewReader(out)
	addr, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr = strings.TrimSpace(addr)
	report := func() (failed int, cpu time.Duration) {
		t.Helper()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(line, &failed, (*int64)(&cpu)); err != nil {
			t.Fatal(err)
		}
		return failed, cpu
	}

	live := w.enrolledAt(addr, clientID(1))
	eventually(t, "the backend is reached", func() bool {
		live.request(1, `1`)
		f, ok := live.next()
		if !ok {
			t.Fatalf("connection ended: %v", live.ended)
		}
		return f.Type == wire.TypeResponse
	})
	var crowd []net.Conn
	// The kernel takes more than the gateway, and so many that there are some left when the first ones had their time.
	for range 8 * childDescriptors {
		crowd = append(crowd, dialRaw(t, addr))
	}
	eventually(t, "a connection cannot be accepted", func() bool { failed, _ := report(); return failed > 0 })
	const starving = 1500 * time.Millisecond
	before, cpuBefore := report()
	begun := time.Now()
	for id := uint32(2); time.Since(begun) < starving; id++ {
		live.roundTrip(id)
		time.Sleep(20 * time.Millisecond)
	}
	after, cpu := report()
	took := time.Since(begun)
	if after == before {
		t.Error("everything was accepted: the descriptors were not used up")
	}
	if n := after - before; float64(n) > 20*took.Seconds() {
		t.Errorf("%d failed accepts in %v, want a back-off", n, took)
	}
	if cpu -= cpuBefore; cpu > took*2/3 {
		t.Errorf("%v of CPU time in %v, want no spinning", cpu, took)
	}
	for _, c := range crowd {
		_ = c.Close()
	}
	w.enrolledAt(addr, clientID(2)).roundTrip(1)
	live.roundTrip(1_000_000)
}
