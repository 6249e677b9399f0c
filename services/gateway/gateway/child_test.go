package gateway

// A gateway in a process of its own, for limits that hold for a whole process.

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	runtimemetrics "runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/internal/limittest"
	"github.com/goshield/goshield/internal/service"
)

// childConfig makes the test binary a gateway with that configuration.
const childConfig = "GOSHIELD_TEST_GATEWAY_CHILD"

// childReport is what a child tells of itself.
type childReport struct {
	FailedAccepts int64
	CPU           time.Duration
	PeakMemory    uint64 // bytes, of what GOMEMLIMIT is about
}

// runAsChild, in a child, runs a gateway until standard input ends. It tells its address, and a childReport for each
// line that it is sent. It has the patience of a test with devices that are slow.
func runAsChild() bool {
	text := os.Getenv(childConfig)
	if text == "" {
		return false
	}
	limittest.Obey()
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
	s.timings.handshake, s.timings.hello, s.timings.linger, s.timings.frame = patience, patience, patience, 5*patience
	if err := s.Start(); err != nil {
		panic(err)
	}
	var peak atomic.Uint64
	go func() { // ends with the process
		samples := []runtimemetrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		for {
			runtimemetrics.Read(samples)
			peak.Store(max(peak.Load(), samples[0].Value.Uint64()-samples[1].Value.Uint64()))
			time.Sleep(5 * time.Millisecond)
		}
	}()
	fmt.Println(s.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if err := json.NewEncoder(os.Stdout).Encode(childReport{
			FailedAccepts: failed.Load(), CPU: limittest.CPU(), PeakMemory: peak.Load(),
		}); err != nil {
			panic(err)
		}
	}
	s.Kill()
	return true
}

// child is such a process, seen from here.
type child struct {
	t     *testing.T
	addr  string
	in    io.Writer
	lines *bufio.Reader
}

// child starts one that ends with the test.
func (w *world) child(t *testing.T, env ...string) *child {
	t.Helper()
	text, err := json.Marshal(w.config("gw-1"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), childConfig+"="+string(text)), env...)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c := &child{t: t, in: in, lines: bufio.NewReader(out)}
	addr, err := c.lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c.addr = strings.TrimSpace(addr)
	return c
}

func (c *child) report() (r childReport) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in); err != nil {
		c.t.Fatalf("the gateway has ended: %v", err)
	}
	line, err := c.lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		c.t.Fatalf("the gateway has ended: %v", err)
	}
	return r
}

// served waits until the gateway of another process answers a device's requests: links to backends open in the background.
func (d *device) served() {
	d.t.Helper()
	eventually(d.t, "the backend is reached", func() bool {
		d.request(1, `1`)
		f, ok := d.next()
		if !ok {
			d.t.Fatalf("connection ended: %v", d.ended)
		}
		return f.Type.String() == "RESPONSE"
	})
}
