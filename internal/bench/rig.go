//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startTimeout is how long a contestant may take until it relays.
const startTimeout = time.Minute

// rig starts what a benchmark needs. It is used by one goroutine.
type rig struct {
	dir      string // for configurations; removed by close
	progress io.Writer
	started  int // contestants: each has a directory of its own
}

// newRig makes a rig. The caller closes it.
func newRig(progress io.Writer) (*rig, error) {
	dir, err := os.MkdirTemp("", "goshield-bench-")
	if err != nil {
		return nil, err
	}
	// nginx's workers give up root, and read in it.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &rig{dir: dir, progress: progress}, nil
}

// close removes what was written. Trials belong to who started them.
func (r *rig) close() { _ = os.RemoveAll(r.dir) }

func (r *rig) tell(format string, args ...any) {
	fmt.Fprintf(r.progress, "%s  ", time.Now().Format(time.TimeOnly))
	fmt.Fprintf(r.progress, format+"\n", args...)
}

// trial is one contestant, running, with all that it needs.
type trial struct {
	name    string
	proxy   *process // what is measured
	address string   // of the proxy
	admin   string   // of ours
	version byte     // of the device protocol; 0: what is behind the address echoes
	others  cores    // for the load
	behind  []stopper

	backends []string // addresses of a gateway's
}

type stopper interface{ stop() }

// stop ends the proxy and what stands behind it.
func (t *trial) stop() {
	if t.proxy != nil {
		t.proxy.stop()
	}
	for _, p := range t.behind {
		p.stop()
	}
}

// start starts a contestant, with what it needs, and returns when it can be
// used. The caller stops the trial.
func (r *rig) start(ctx context.Context, c contestant, threads int, opt options) (*trial, error) {
	place, err := r.place(opt, threads)
	if err != nil {
		return nil, err
	}
	t := &trial{name: c.name, address: place.listen, admin: place.admin, others: place.others}
	t.behind, err = c.behind(ctx, &place)
	t.version, t.backends = place.version, place.backends
	if err == nil {
		t.proxy, err = c.start(place)
	}
	if err == nil {
		err = await(ctx, t.proxy, func(ctx context.Context) error { return c.try(ctx, t.address) })
	}
	if err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

// explain adds to an error that the proxy has ended, if it has.
func (t *trial) explain(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, t.proxy.ended())
}

// place is a directory, addresses and cores for a contestant.
func (r *rig) place(opt options, threads int) (placement, error) {
	own, others, err := shareOut(threads)
	if err != nil {
		return placement{}, err
	}
	r.started++
	p := placement{
		dir: filepath.Join(r.dir, strconv.Itoa(r.started)), threads: threads, cores: own, others: others, binaries: opt.binaries,
	}
	if p.listen, err = freeAddress(); err != nil {
		return p, err
	}
	if p.admin, err = freeAddress(); err != nil {
		return p, err
	}
	return p, os.Mkdir(p.dir, 0o755)
}

// await tries until it works.
func await(ctx context.Context, p *process, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ended := p.ended(); ended != nil {
			return ended
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w: %s", p.name, err, p.output)
		}
	}
}

// tryRelay is whether a byte comes through from the server behind, which echoes
// or speaks first.
func tryRelay(ctx context.Context, address string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	probe := make([]byte, 1)
	if _, err := conn.Write(probe); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, probe)
	return err
}

// startLoad opens connections, each with one round trip done. The caller stops
// the load, which closes them.
func (t *trial) startLoad(ctx context.Context, spec loadSpec) (*peer, error) {
	p, err := startRole("load", nil, t.others, "load-role")
	if err != nil {
		return nil, err
	}
	spec.Address = t.address
	if err := p.do(ctx, 2*time.Minute, spec); err != nil {
		p.stop()
		return nil, fmt.Errorf("open connections: %w", t.explain(err))
	}
	return p, nil
}

// measure has a load in a role measure, as spec tells it, for about as long as
// opt says.
func (t *trial) measure(ctx context.Context, load *peer, spec any, opt options) (measurement, error) {
	var m measurement
	err := load.ask(ctx, opt.warm+opt.window+2*time.Minute, spec, &m)
	if err == nil && m.Fault != "" {
		err = errors.New(m.Fault)
	}
	if err != nil {
		return measurement{}, t.explain(err)
	}
	return m, nil
}

// measureOnce starts a load in a role for one measurement.
func (t *trial) measureOnce(ctx context.Context, role string, spec any, opt options) (measurement, error) {
	load, err := startRole("load", nil, t.others, role)
	if err != nil {
		return measurement{}, err
	}
	defer load.stop()
	return t.measure(ctx, load, spec, opt)
}

// freeAddress is one of 127.0.0.1 that nobody listens on. It lies outside the
// range that the kernel gives to outgoing connections, of which a benchmark has
// thousands, so that none of them takes it before the contestant does.
func freeAddress() (string, error) {
	const lowest = 10000
	top := 32768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if low, err := strconv.Atoi(strings.Fields(string(text))[0]); err == nil && low > lowest {
			top = low
		}
	}
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(lowest+rand.IntN(top-lowest)))
		listener, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		return address, listener.Close()
	}
	return "", errors.New("no free port found")
}

// descriptorLimit is how many descriptors each process may have.
func descriptorLimit() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	return int(limit.Max), nil
}
