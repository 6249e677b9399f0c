package balancer

// A balancer in a process of its own, for limits that hold for a whole process.

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/limittest"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/lb/relay"
)

// childUpstream makes the test binary a balancer in front of the upstream that it names.
const childUpstream = "GOSHIELD_TEST_LB_UPSTREAM"

func discard() service.Deps {
	return service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}
}

// childReport is what a child tells of itself.
type childReport struct {
	relay.Stats
	CPU          time.Duration
	PeakMemory   uint64 // of what memoryUse counts
	PeakResident uint64
}

// runAsChild, in a child, runs a balancer until its standard input ends. It tells its address, and a
// childReport for each line that it is sent.
func runAsChild() bool {
	upstream := os.Getenv(childUpstream)
	if upstream == "" {
		return false
	}
	limittest.Obey()
	cfg := testConfig(upstream)
	cfg.ProxyProtocol = false
	cfg.Health.Interval = time.Hour // one probe, at the start
	s, err := New(cfg, discard())
	if err != nil {
		panic(err)
	}
	if err := s.Start(); err != nil {
		panic(err)
	}
	defer s.Kill()
	var peak atomic.Uint64
	go func() { // ends with the process
		for {
			used, _ := memoryUse()
			peak.Store(max(peak.Load(), used))
			time.Sleep(2 * time.Millisecond)
		}
	}()
	fmt.Println(s.Addr("device"))
	for asked := bufio.NewScanner(os.Stdin); asked.Scan(); {
		_ = json.NewEncoder(os.Stdout).Encode(childReport{
			Stats:        s.engine.Stats(),
			CPU:          limittest.CPU(),
			PeakMemory:   peak.Load(),
			PeakResident: limittest.PeakResident(),
		})
	}
	return true
}

// child is such a process.
type child struct {
	addr  string
	stdin io.WriteCloser
	lines *bufio.Reader
}

// startChild starts one that ends with the test.
func startChild(t *testing.T, upstream string, env ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), childUpstream+"="+upstream), env...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the balancer: %v", err)
		}
	})
	c := &child{stdin: stdin, lines: bufio.NewReader(stdout)}
	addr, err := c.lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c.addr = strings.TrimSpace(addr)
	return c
}

func (c *child) report(t *testing.T) (r childReport) {
	t.Helper()
	if _, err := io.WriteString(c.stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	line, err := c.lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ping makes a round trip with an upstream that echoes.
func ping(c net.Conn, patience time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "x"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}
