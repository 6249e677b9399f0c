package stack

// Devices in a process of their own: so many that one process has not the descriptors for both ends, or some whose own
// garbage and goroutines are not to be those of the stack under test.

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/cmd/goshield/bench"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

const (
	fleetEnv  = "GOSHIELD_TEST_FLEET_ELSEWHERE"
	tenantEnv = "GOSHIELD_TEST_TENANT_ELSEWHERE"
)

// runElsewhere, in another process, is devices until standard input ends.
func runElsewhere() bool {
	if text := os.Getenv(fleetEnv); text != "" {
		runAsFleet([]byte(text))
		return true
	}
	if text := os.Getenv(tenantEnv); text != "" {
		runAsTenant([]byte(text))
		return true
	}
	return false
}

// target is what devices have to know of the stack.
type target struct {
	Addr, CA string
	FirstMAC uint64
}

func (f *fleet) target(t *testing.T) target {
	t.Helper()
	ca, err := os.ReadFile(f.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	return target{Addr: f.Addr(), CA: string(ca), FirstMAC: firstMAC()}
}

func (g target) tls() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(g.CA))
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}

// process is another one, seen from here: what is said to it, and the lines that it says, of type T.
type process[T any] struct {
	in  io.WriteCloser
	say chan T // closed at its end, or at a line that is none
}

// startElsewhere starts this very program with spec in its environment. It ends with the test.
func startElsewhere[T any](t *testing.T, env string, spec any) process[T] {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env, cmd.Stderr = append(os.Environ(), env+"="+string(text)), os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	p := process[T]{in: in, say: make(chan T, 3600)} // a line a second
	go func() {                                      // ends with the process
		defer close(p.say)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var line T
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				fmt.Fprintf(os.Stderr, "%v: %s\n", err, lines.Bytes())
				return
			}
			p.say <- line
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		for range p.say {
		}
		_ = cmd.Wait()
	})
	return p
}

// fleetElsewhere describes devices that come back when their connections are lost.
type fleetElsewhere struct {
	Devices int
	Rate    float64
	Gateway string // its address: the devices go past the load balancer; "": they do not
	Target  target // filled in by elsewhere
}

// fleetReport is a line of the other process.
type fleetReport struct {
	Online   int
	Answered int64
	Result   *fleetResult // the last line
	Fault    string
}

type fleetResult struct {
	Wrong, EnrolledAnew, Reconnects int64
	TLSResumed                      int64 // handshakes, of all
	Ended                           int
}

func runAsFleet(text []byte) {
	say := json.NewEncoder(os.Stdout)
	var spec fleetElsewhere
	if err := json.Unmarshal(text, &spec); err != nil {
		panic(err)
	}
	var dial func(ctx context.Context, network, addr string) (net.Conn, error)
	if spec.Gateway != "" {
		dial = pastBalancer(spec.Gateway)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // ends with the process at the latest
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	r, err := bench.Run(ctx, bench.Config{
		Addr: spec.Target.Addr, TLS: spec.Target.tls(), DialContext: dial, Devices: spec.Devices, Rate: spec.Rate,
		Duration: time.Hour, FirstMAC: spec.Target.FirstMAC, BackoffBase: 100 * time.Millisecond, BackoffCap: 5 * time.Second,
		Progress: func(p bench.Progress) { _ = say.Encode(fleetReport{Online: p.Online, Answered: p.Answered}) },
	})
	if err != nil {
		_ = say.Encode(fleetReport{Fault: err.Error()})
		return
	}
	_ = say.Encode(fleetReport{Result: &fleetResult{
		Wrong: r.Requests.Wrong, EnrolledAnew: r.Sessions.EnrolledAnew, Reconnects: r.Sessions.Reconnects,
		TLSResumed: r.Connect.TLSResumed, Ended: r.Sessions.Ended,
	}})
}

// fleetProcess is such a fleet, seen from here.
type fleetProcess struct {
	process[fleetReport]
	t *testing.T
}

func (f *fleet) elsewhere(t *testing.T, what fleetElsewhere) *fleetProcess {
	t.Helper()
	what.Target = f.target(t)
	return &fleetProcess{startElsewhere[fleetReport](t, fleetEnv, what), t}
}

// wait waits for something of its progress.
func (p *fleetProcess) wait(limit time.Duration, what string, ok func(fleetReport) bool) fleetReport {
	p.t.Helper()
	for late := time.After(limit); ; {
		select {
		case r, open := <-p.say:
			if !open || r.Fault != "" || r.Result != nil {
				p.t.Fatalf("the devices ended: %s", r.Fault)
			}
			if ok(r) {
				return r
			}
		case <-late:
			p.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// end stops the devices.
func (p *fleetProcess) end() fleetResult {
	p.t.Helper()
	_ = p.in.Close()
	for late := time.After(time.Minute); ; {
		select {
		case r, open := <-p.say:
			if !open || r.Fault != "" {
				p.t.Fatalf("the devices ended without a result: %s", r.Fault)
			}
			if r.Result != nil {
				return *r.Result
			}
		case <-late:
			p.t.Fatal("the devices did not end")
		}
	}
}

// tenantElsewhere describes devices that stay connected, and ask a service so many times a second while they are told to.
type tenantElsewhere struct {
	Devices int
	Rate    float64
	Service string
	Gateway string // its address: the devices go past the load balancer
	Target  target // filled in by tenant
}

// tenantReport is a line of the other process: what came of all that was asked so far.
type tenantReport struct {
	Answered, Refused, Failed int64
	Lost                      int64  // connections
	Fault                     string // the last failure
}

// tenantCounts are a tenantReport that many write.
type tenantCounts struct {
	answered, refused, failed, lost atomic.Int64
	fault                           atomic.Pointer[string]
}

func (c *tenantCounts) report() tenantReport {
	r := tenantReport{Answered: c.answered.Load(), Refused: c.refused.Load(), Failed: c.failed.Load(), Lost: c.lost.Load()}
	if fault := c.fault.Load(); fault != nil {
		r.Fault = *fault
	}
	return r
}

// runAsTenant reads a line for each change, true or false, and answers each with a report; the first one says that the devices
// are connected.
func runAsTenant(text []byte) {
	var spec tenantElsewhere
	if err := json.Unmarshal(text, &spec); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	var counts tenantCounts
	var asking atomic.Bool
	var devices sync.WaitGroup
	say, told := json.NewEncoder(os.Stdout), json.NewDecoder(os.Stdin)
	for i := range spec.Devices {
		id, err := wire.ClientIDFromMAC(fmt.Sprintf("%012x", spec.Target.FirstMAC+uint64(i)))
		if err != nil {
			panic(err)
		}
		d, err := client.Dial(ctx, client.Config{
			Addr: spec.Target.Addr, TLS: spec.Target.tls(), ClientID: id, KeepDialing: true,
			DialContext: pastBalancer(spec.Gateway),
			Hooks: client.Hooks{OnDisconnect: func(err error) {
				if ctx.Err() == nil {
					counts.lost.Add(1)
				}
			}},
		})
		if err != nil {
			panic(err)
		}
		devices.Go(func() { // ends with ctx
			defer d.Close()
			tick := time.NewTicker(time.Duration(float64(spec.Devices) / spec.Rate * float64(time.Second)))
			defer tick.Stop()
			for ctx.Err() == nil {
				if asking.Load() {
					counts.ask(ctx, d, spec.Service)
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	for ask := false; ; {
		asking.Store(ask)
		if say.Encode(counts.report()) != nil || told.Decode(&ask) != nil {
			break
		}
	}
	cancel()
	devices.Wait()
}

// ask asks once. A busy machine may take long for it.
func (c *tenantCounts) ask(ctx context.Context, d *client.Client, service string) {
	asked, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := d.Request(asked, service, []byte(`1`))
	var refused *wire.Error
	switch {
	case err == nil:
		c.answered.Add(1)
	case ctx.Err() != nil:
	case errors.As(err, &refused) && refused.Code == wire.CodeRateLimited:
		c.refused.Add(1)
	default:
		c.failed.Add(1)
		fault := err.Error()
		c.fault.Store(&fault)
	}
}

// tenantProcess is such a tenant, seen from here.
type tenantProcess struct {
	process[tenantReport]
	t *testing.T
}

// tenant starts one, which asks nothing yet.
func (f *fleet) tenant(t *testing.T, what tenantElsewhere) *tenantProcess {
	t.Helper()
	what.Target = f.target(t)
	p := &tenantProcess{startElsewhere[tenantReport](t, tenantEnv, what), t}
	p.next()
	return p
}

// ask has the tenant ask from now on, or no more, and returns what came of it so far.
func (p *tenantProcess) ask(on bool) tenantReport {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, on); err != nil {
		p.t.Fatalf("the tenant has ended: %v", err)
	}
	return p.next()
}

func (p *tenantProcess) next() tenantReport {
	p.t.Helper()
	select {
	case r, open := <-p.say:
		if !open {
			p.t.Fatal("the tenant has ended")
		}
		return r
	case <-time.After(2 * time.Minute):
		p.t.Fatal("the tenant says nothing")
		panic("unreachable")
	}
}
