package stacktest

// Devices under load: each sends a request every fifth of a second and remembers what went wrong. And others, which come and go.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// pace is the time between two requests of a device.
const pace = 200 * time.Millisecond

// authority is the name of the file with the certificate that devices trust.
const authority = "ca.pem"

// keys is what devices have.
type keys struct {
	ca    string // the file of the authority's certificate
	roots *x509.CertPool
	group []byte
	known *ledger // what devices with these keys have had
}

func readKeys(t *testing.T, dir string) keys {
	t.Helper()
	ca := filepath.Join(dir, authority)
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "group-key"))
	if err != nil {
		t.Fatal(err)
	}
	group, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal("the group key is not hex")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", ca)
	}
	return keys{ca, roots, group, newLedger()}
}

// fleet is devices that are connected and send requests until stop.
type fleet struct {
	devices []*device
	cancel  context.CancelFunc
	done    sync.WaitGroup
}

// device is one of them.
type device struct {
	client   *client.Client
	answered atomic.Int64
	connects atomic.Int64
	enrolled atomic.Int64
	rotated  atomic.Int64

	mu       sync.Mutex
	failures []error
	last     time.Time     // of the last answer
	gap      time.Duration // longest between two answers
	history  []event       // what befell its connection, and its requests
	story    []event       // the part of it that the longest gap is of
}

// event is something that befell a device.
type event struct {
	at   time.Time
	what string
}

// config is that of a device with the number n. Its waits are the defaults, for which the promises are made.
func (k keys) config(n int, addr string, store client.TokenStore) client.Config {
	id, err := wire.ClientIDFromMAC(fmt.Sprintf("02:57:ac:00:%02x:%02x", n>>8, n&0xff))
	if err != nil {
		panic(err) // a number that is none
	}
	key := wire.DeviceKey(k.group, id)
	k.known.addKey(id, key)
	store = notingStore{store, k.known}
	return client.Config{
		Addr: addr, ClientID: id, DeviceKey: &key, TokenStore: store,
		TLS:         &tls.Config{RootCAs: k.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12},
		KeepDialing: true,
	}
}

// once is for a device that gives up after one attempt.
func once(cfg client.Config, limit time.Duration) client.Config {
	cfg.KeepDialing = false
	cfg.ConnectTimeout = limit
	return cfg
}

// startFleet connects n devices, counted from the number first, to addr and lets them send. store keeps
// their tokens.
func startFleet(t *testing.T, k keys, first, n int, addr string, store client.TokenStore) *fleet {
	t.Helper()
	return startFleetAt(t, pace, k, first, n, addr, store)
}

// startFleetAt is startFleet for devices that wait for pace between two requests.
func startFleetAt(t *testing.T, pace time.Duration, k keys, first, n int, addr string, store client.TokenStore) *fleet {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &fleet{cancel: cancel, devices: make([]*device, n)}
	t.Cleanup(f.stop)
	dialing, stop := context.WithTimeout(ctx, patience)
	defer stop()
	var wait sync.WaitGroup
	slots := make(chan struct{}, 32) // of those who dial at once
	failed := make([]error, n)
	for i := range n {
		d := &device{}
		f.devices[i] = d
		cfg := k.config(first+i, addr, store)
		cfg.Hooks.OnConnect = func(c client.Connected) {
			d.connects.Add(1)
			if c.Enrolled {
				d.enrolled.Add(1)
			}
			d.befell("connected: dial %v, TLS %v, WELCOME %v", c.Dial, c.Handshake, c.Welcome)
		}
		cfg.Hooks.OnConnectFailed = func(err error) { d.befell("could not connect: %v", err) }
		cfg.Hooks.OnDisconnect = func(err error) { d.befell("disconnected: %v", err) }
		cfg.Hooks.OnRotate = func() { d.rotated.Add(1) }
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			d.client, failed[i] = client.Dial(dialing, cfg)
		})
	}
	wait.Wait()
	for i, err := range failed {
		if err != nil {
			t.Fatalf("device %d: %v", first+i, err)
		}
	}
	for i, d := range f.devices {
		d.last = time.Now()
		f.done.Go(func() { d.send(ctx, i, pace) }) // ends with stop
	}
	return f
}

// send asks the echo service until ctx ends.
func (d *device) send(ctx context.Context, n int, pace time.Duration) {
	select { // not all at once
	case <-ctx.Done():
		return
	case <-time.After(rand.N(pace)):
	}
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		body := fmt.Sprintf(`{"device":%d,"n":%d}`, n, i)
		answer, err := d.client.Request(ctx, "echo", []byte(body))
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && string(answer) != body:
			err = fmt.Errorf("device %d got %s for %s", n, answer, body)
		}
		d.note(err)
	}
}

func (d *device) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if err != nil {
		d.failures = append(d.failures, err)
		d.history = append(d.history, event{now, "request failed: " + err.Error()})
		return
	}
	d.answered.Add(1)
	if gap := now.Sub(d.last); gap > d.gap {
		d.gap = gap
		d.story = append([]event{{d.last, "last answer"}}, d.history...)
		d.story = append(d.story, event{now, "answer"})
	}
	d.history = d.history[:0]
	d.last = now
}

// befell notes what happens to a device between two answers.
func (d *device) befell(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.history = append(d.history, event{time.Now(), fmt.Sprintf(format, args...)})
}

// stop ends the devices and waits for them.
func (f *fleet) stop() {
	f.cancel()
	f.done.Wait()
	var closing sync.WaitGroup
	for _, d := range f.devices {
		if d.client != nil {
			closing.Go(func() { _ = d.client.Close() })
		}
	}
	closing.Wait()
}

// reset forgets what was: the next report begins here.
func (f *fleet) reset() {
	for _, d := range f.devices {
		d.mu.Lock()
		d.failures, d.gap, d.last, d.story = nil, 0, time.Now(), nil
		d.mu.Unlock()
		d.answered.Store(0)
		d.connects.Store(0)
		d.enrolled.Store(0)
		d.rotated.Store(0)
	}
}

// tellFrom is how long the longest silence must have been for the report to tell what it was made of.
const tellFrom = 2 * time.Second

// report is what happened since reset.
type report struct {
	answered, connects, enrolled, rotated int64
	failures                              []error
	gaps                                  []time.Duration // longest silence of each device, sorted
	worst                                 []event         // what befell the device with the longest
}

func (f *fleet) report() report {
	var r report
	var longest time.Duration
	for _, d := range f.devices {
		d.mu.Lock()
		r.failures = append(r.failures, d.failures...)
		r.gaps = append(r.gaps, max(d.gap, time.Since(d.last)))
		if d.gap > longest {
			longest, r.worst = d.gap, d.story
		}
		d.mu.Unlock()
		r.answered += d.answered.Load()
		r.connects += d.connects.Load()
		r.enrolled += d.enrolled.Load()
		r.rotated += d.rotated.Load()
	}
	slices.Sort(r.gaps)
	return r
}

func (r report) String() string {
	s := fmt.Sprintf("%d answered, %d failed, %d reconnects, %d enrolled anew; longest silence of a device: %s",
		r.answered, len(r.failures), r.connects, r.enrolled, r.silence())
	for i, err := range r.failures {
		if i == 3 {
			break
		}
		s += "\n\t" + err.Error()
	}
	if r.gaps[len(r.gaps)-1] > tellFrom {
		s += "\n\tthe device with the longest silence:"
		for _, e := range r.worst {
			s += fmt.Sprintf("\n\t%s %s", e.at.Format("15:04:05.000"), e.what)
		}
	}
	return s
}

// silence is how long devices were without an answer at most.
func (r report) silence() string {
	return fmt.Sprintf("median %v, worst %v, of %d devices",
		r.gaps[len(r.gaps)/2].Round(10*time.Millisecond), r.gaps[len(r.gaps)-1].Round(10*time.Millisecond), len(r.gaps))
}

// settle waits until every device has had an answer from now on.
func (f *fleet) settle(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	return await(t, "every device is answered", patience, func() error {
		waiting := 0
		for _, d := range f.devices {
			d.mu.Lock()
			if !d.last.After(start) {
				waiting++
			}
			d.mu.Unlock()
		}
		if waiting > 0 {
			return fmt.Errorf("%d devices wait", waiting)
		}
		return nil
	})
}

// onlyLost fails the test for errors other than those that a broken connection makes.
func (r report) onlyLost(t *testing.T) {
	t.Helper()
	for _, err := range r.failures {
		if !errors.Is(err, client.ErrConnectionLost) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a request failed: %v", err)
		}
	}
}

// comeAndGo lets devices connect, ask and leave, over and over, while during runs: each first enrols, then
// resumes. None may lose its token, and none be refused; patient ones may be told to come again. It
// returns how often they came.
func comeAndGo(t *testing.T, k keys, patient bool, during func()) int64 {
	t.Helper()
	const n, rest = 24, 6 * time.Second // a device that comes much more often is in quarantine
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var visits atomic.Int64
	var wait sync.WaitGroup
	store := client.MemoryStore()
	for i := range n {
		wait.Go(func() {
			for first := true; ; first = false {
				pause := rest
				if first {
					pause = rand.N(rest)
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
				cfg := k.config(visitors+100+i, vip+":8443", store)
				if !patient {
					cfg = once(cfg, time.Minute)
				}
				enrolled, err := k.visit(cfg)
				if err == nil && enrolled && !first {
					err = errors.New("it lost its token")
				}
				if err != nil {
					t.Errorf("device %d that comes and goes: %v", i, err)
				}
				visits.Add(1)
			}
		})
	}
	// Each has been there before it begins, and once more after it has ended.
	await(t, "every device has come", patience, func() error {
		if visits.Load() < n {
			return fmt.Errorf("%d of %d", visits.Load(), n)
		}
		return nil
	})
	during()
	end := visits.Load() + 2*n
	await(t, "every device has come again", patience, func() error {
		if visits.Load() < end {
			return errors.New("not all")
		}
		return nil
	})
	cancel()
	wait.Wait()
	return visits.Load()
}

// visit connects, asks and leaves. It reports whether the device had to enrol.
func (k keys) visit(cfg client.Config) (enrolled bool, err error) {
	var anew atomic.Bool
	cfg.Hooks.OnConnect = func(c client.Connected) { anew.Store(c.Enrolled) }
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		return false, err
	}
	defer c.Close()
	_, err = c.Request(ctx, "echo", []byte(`"visit"`))
	return anew.Load(), err
}
