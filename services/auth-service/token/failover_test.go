package token

import (
	"context"
	"errors"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
)

// Real failovers of a real cluster, in the middle of what a device does.

// rounds of killing a primary: few, unless all the time is asked for.
func rounds() int {
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		return 200
	}
	return 5
}

// shard is a shard of a cluster and devices whose records it has.
type shard struct {
	t                *testing.T
	cluster          *redistest.Own
	store            *Store
	primary, replica *redistest.Node
	devices          []*meter
}

// meter is a device that keeps to the rules: it stores a new token before it sends it, and goes on
// with the one before while it was not answered.
type meter struct {
	id   wire.ClientID
	have wire.Token // confirmed: a failover does not lose it
	next wire.Token // handed out, confirmed, not used yet; zero: none
}

const meters = 4

// newShard finds devices whose keys lie beside each other's, and enrols them.
func newShard(t *testing.T, c *redistest.Own, store *Store) *shard {
	t.Helper()
	s := &shard{t: t, cluster: c, store: store}
	for len(s.devices) < meters {
		id := newID()
		primary, replica := c.Shard(Key(id))
		if s.primary == nil {
			s.primary, s.replica = primary, replica
		}
		if primary == s.primary {
			s.devices = append(s.devices, &meter{id: id})
		}
	}
	for _, d := range s.devices {
		s.enrol(d)
	}
	return s
}

// ctx is the time that auth-service gives one request, and then some for a busy machine.
func (s *shard) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

// patient is the time for what is done once.
func (s *shard) patient() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	s.t.Cleanup(cancel)
	return ctx
}

// enrol repeats until a replica has the token.
func (s *shard) enrol(d *meter) {
	s.t.Helper()
	redistest.Until(s.t, "an enrolment is confirmed", func() bool {
		g, err := s.store.Issue(s.ctx(), Enrolment{ClientID: d.id, Owner: "n/1"}, rules)
		d.have, d.next = g.Token, wire.Token{}
		return err == nil && g.Confirmed
	})
}

// rotate repeats until a successor is handed out.
func (s *shard) rotate(d *meter) {
	s.t.Helper()
	redistest.Until(s.t, "a rotation is confirmed", func() bool {
		g, err := s.store.Rotate(s.ctx(), d.id, d.have, "n/1", rules)
		d.next = g.Token
		return err == nil
	})
}

// says is the verdict on a token, as soon as there is one.
func (s *shard) says(d *meter, t wire.Token) (says string) {
	s.t.Helper()
	redistest.Until(s.t, "a verdict", func() bool {
		v, err := s.store.Verify(s.ctx(), d.id, t, "", rules)
		var refused *Refusal
		switch {
		case errors.As(err, &refused):
			says = string(refused.Code)
		case err == nil:
			says = string(v.Result)
		}
		return says != ""
	})
	return says
}

// atOnce does something for each device at the same time, in goroutines that wait ends.
func (s *shard) atOnce(do func(d *meter)) (wait func()) {
	var wg sync.WaitGroup
	for _, d := range s.devices {
		wg.Go(func() { do(d) })
	}
	return wg.Wait
}

// TestFailoverInMidRotation: a primary is killed between a script and its WAIT. Whatever of the
// writes is lost, no device is locked out, and nothing that was handed out is (RELIABILITY row 35).
// Every second round the replica has not seen the write; in the others it may have.
func TestFailoverInMidRotation(t *testing.T) {
	t.Parallel()
	c := redistest.StartOwn(t)
	store := NewStore(c.Open(), zap.NewNop())
	// One that waits until the kill, mostly; in production it is 50 ms.
	cfg := c.Config()
	cfg.Timeout = 3 * time.Second
	rdb, err := redisdb.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rdb.Close() }()
	patient := NewStore(rdb, zap.NewNop())
	patient.wait = time.Minute
	s := newShard(t, c, store)
	for round := range rounds() {
		s.primary, s.replica = c.Shard(Key(s.devices[0].id))
		for i, d := range s.devices { // half of them rotate, half use a new token for the first time
			if d.next.IsZero() && i%2 == 1 {
				s.rotate(d)
			}
		}
		s.killInMidOperation(patient, round%2 == 0)
		for _, d := range s.devices {
			s.survived(d)
		}
		s.enrolsAlone(s.devices[0])
		s.primary.Start()
		c.AwaitWhole()
		for _, d := range s.devices { // rotation goes on
			s.rotate(d)
			// ok: promoted by a verify whose answer came too late, and repeated.
			if got := s.says(d, d.next); got != string(authapi.ResultPromoted) && got != string(authapi.ResultOK) {
				t.Fatalf("round %d: a new token after the failover is %s, want promoted", round, got)
			}
			d.have, d.next = d.next, wire.Token{}
			s.settle(d)
		}
	}
	t.Attr("primaries_killed_between_script_and_WAIT", strconv.Itoa(rounds()))
}

// killInMidOperation kills the primary when it has executed an operation of every device, and no
// replica has confirmed one.
func (s *shard) killInMidOperation(patient *Store, lost bool) {
	s.t.Helper()
	s.replica.Freeze()
	if lost {
		s.primary.DropReplica()
	}
	before := map[*meter]map[string]string{}
	for _, d := range s.devices {
		before[d] = s.primary.Fields(Key(d.id))
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	wait := s.atOnce(func(d *meter) {
		for ctx.Err() == nil { // the primary may have to be found first
			if !d.next.IsZero() {
				_, _ = patient.Verify(ctx, d.id, d.next, "", rules) // its answer is on its way to the device
			} else if g, err := patient.Rotate(ctx, d.id, d.have, "n/1", rules); err == nil {
				s.t.Errorf("a rotation that no replica has was handed out: %+v", g.Record)
			}
		}
	})
	for _, d := range s.devices {
		redistest.Until(s.t, "the script was executed", func() bool {
			now := s.primary.Fields(Key(d.id))
			return now["next"] != before[d]["next"] || now["gen"] != before[d]["gen"]
		})
	}
	s.primary.Kill()
	cancel()
	wait()
	s.replica.Thaw()
}

// survived holds a device's right to get in with what it has, after a failover, while its shard
// has no replica.
func (s *shard) survived(d *meter) {
	s.t.Helper()
	token, want := d.have, map[string]bool{"ok": true}
	if !d.next.IsZero() { // the device has sent it already, and keeps to it
		token = d.next
		want["promoted"] = true // again: the first time was lost
	}
	if got := s.says(d, token); !want[got] {
		s.t.Fatalf("locked out: an honest device's token is %s", got)
	}
	d.have, d.next = token, wire.Token{}
	if got := s.says(d, token); got != "ok" {
		s.t.Fatalf("its token is %s a second time, want ok", got)
	}
	// Without a replica nothing new is handed out, but who has nothing gets in.
	redistest.Until(s.t, "a rotation is refused because no replica has it", func() bool {
		_, err := s.store.Rotate(s.ctx(), d.id, d.have, "n/1", rules)
		if err == nil {
			s.t.Fatal("a rotation without a replica was handed out")
		}
		return errors.Is(err, ErrUnconfirmed)
	})
}

// enrolsAlone: enrolment goes on without a replica, and says that none has it.
func (s *shard) enrolsAlone(d *meter) {
	s.t.Helper()
	redistest.Until(s.t, "an enrolment", func() bool {
		g, err := s.store.Issue(s.ctx(), Enrolment{ClientID: d.id, Owner: "n/1"}, rules)
		if g.Confirmed {
			s.t.Fatal("an enrolment without a replica is confirmed")
		}
		d.have = g.Token
		return err == nil
	})
}

// settle waits until the replica has what was written for a device: what is lost from here on is
// what the next round is about.
func (s *shard) settle(d *meter) {
	s.t.Helper()
	primary, _ := s.cluster.Shard(Key(d.id))
	redistest.Until(s.t, "the replica follows", func() bool {
		p := primary.Client().Pipeline() // WAIT is about the connection's own writes
		p.HSet(s.t.Context(), Key(d.id), "settled", "1")
		waited := p.Do(s.t.Context(), "wait", 1, 1000)
		_, _ = p.Exec(s.t.Context())
		n, err := waited.Int()
		return err == nil && n == 1
	})
}

// TestMinority: a primary whose cluster is gone, and one that wakes up when another has long taken its
// place, say yes to nothing (RELIABILITY row 37).
func TestMinority(t *testing.T) {
	t.Parallel()
	c := redistest.StartOwn(t)
	store := NewStore(c.Open(), zap.NewNop())
	s := newShard(t, c, store)
	for _, d := range s.devices {
		s.rotate(d)
	}
	t.Run("repeated", s.repeated)
	t.Run("cut off", s.cutOff)
	t.Run("woken up", s.wokenUp)
}

// repeated makes each write twice, the second time on another connection, as after a lost answer,
// while the replica is frozen: neither is confirmed.
func (s *shard) repeated(t *testing.T) {
	s.replica.Freeze()
	for _, d := range s.devices[:2] {
		fixed, fresh := New(), newID()
		for p, _ := s.cluster.Shard(Key(fresh)); p != s.primary; p, _ = s.cluster.Shard(Key(fresh)) {
			fresh = newID()
		}
		for range 2 {
			cfg := s.cluster.Config()
			cfg.Timeout, cfg.DialTimeout = 30*time.Second, 30*time.Second // the verdict is what this is about
			rdb, err := redisdb.Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = rdb.Close() })
			again := NewStore(rdb, zap.NewNop())
			again.generate = func() wire.Token { return fixed }
			if _, err := again.Rotate(s.patient(), d.id, d.have, "n/1", rules); !errors.Is(err, ErrUnconfirmed) {
				t.Errorf("a rotation that no replica has: %v, want ErrUnconfirmed", err)
			}
			g, err := again.Issue(s.patient(), Enrolment{ClientID: fresh, Owner: "n/1"}, rules)
			if err != nil || g.Confirmed {
				t.Errorf("an enrolment that no replica has: confirmed %v, %v; want one that is not confirmed", g.Confirmed, err)
			}
		}
	}
	s.replica.Thaw()
	s.cluster.AwaitWhole()
	s.primary, s.replica = s.cluster.Shard(Key(s.devices[0].id))
}

// cutOff stops all nodes but one primary.
func (s *shard) cutOff(t *testing.T) {
	for _, n := range s.cluster.Nodes() {
		if n != s.primary {
			n.Freeze()
		}
	}
	refused := func() bool {
		return s.primary.Client().HSet(t.Context(), Key(s.devices[0].id), "x", "1").Err() != nil
	}
	cut := time.Now()
	answered := s.stillSaysOK(t, func() bool { return time.Since(cut) < 2*redistest.NodeTimeout || !refused() })
	for d, until := s.devices[0], time.Now().Add(2*redistest.NodeTimeout); time.Now().Before(until) || !refused(); {
		s.sayNo(t, d)
		if time.Now().After(until.Add(time.Minute)) {
			t.Fatal("the minority still takes writes")
		}
	}
	for _, d := range s.devices {
		s.sayNo(t, d)
	}
	// It asks each of the others every half node timeout, and misses them when they have not answered for a whole one.
	last := answered()
	limit := 3 * redistest.NodeTimeout // on a machine with other work
	if os.Getenv("GOSHIELD_TEST_LONG") != "" {
		limit = 2 * redistest.NodeTimeout
	}
	if last.Sub(cut) > limit {
		t.Errorf("a primary by itself still verified a token %v after the cut, want it to refuse within %v", last.Sub(cut), limit)
	}
	t.Attr("cut_off_primary_verified_for", max(0, last.Sub(cut)).Round(time.Millisecond).String())
	for _, n := range s.cluster.Nodes() {
		if n != s.primary {
			n.Thaw()
		}
	}
	s.cluster.AwaitWhole()
	s.intact(t)
}

// stillSaysOK asks the primary itself about the first device's token, again and again while goOn says so. What it returns
// waits for that, and returns when the last ok came.
func (s *shard) stillSaysOK(t *testing.T, goOn func() bool) (last func() time.Time) {
	old := NewStore(s.primary.Client(), zap.NewNop()) // knows of no other node
	d, ok, done := s.devices[0], time.Time{}, make(chan struct{})
	go func() {
		defer close(done)
		for t.Context().Err() == nil && goOn() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := old.Verify(ctx, d.id, d.have, "", rules); err == nil {
				ok = time.Now()
			}
			cancel()
		}
	}()
	return func() time.Time { <-done; return ok }
}

// sayNo wants that nothing is handed out, and nothing said to be revoked.
func (s *shard) sayNo(t *testing.T, d *meter) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := s.store.Rotate(ctx, d.id, d.have, "n/1", rules); err == nil {
		t.Fatal("a minority's rotation was handed out")
	}
	if g, err := s.store.Issue(ctx, Enrolment{ClientID: newID(), Owner: "n/1"}, rules); err == nil && g.Confirmed {
		t.Fatal("a minority's enrolment is confirmed")
	}
}

// wokenUp freezes a primary until its replica has taken over, while it is asked.
func (s *shard) wokenUp(t *testing.T) {
	s.primary, s.replica = s.cluster.Shard(Key(s.devices[0].id))
	s.primary.Freeze()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	old := NewStore(s.primary.Client(), zap.NewNop()) // knows of no other node
	old.replicas.seen = true                          // and that there are replicas
	var mu sync.Mutex
	handedOut := 0
	wait := s.atOnce(func(d *meter) {
		for ctx.Err() == nil {
			attempt, cancel := context.WithTimeout(ctx, time.Second)
			_, err := old.Rotate(attempt, d.id, d.have, "n/1", rules)
			cancel()
			if err == nil {
				mu.Lock()
				handedOut++
				mu.Unlock()
			}
		}
	})
	redistest.Until(t, "the replica takes over", s.replica.IsPrimary)
	lost := s.devices[0]
	redistest.Until(t, "a token is revoked where the primary is now", func() bool {
		_, err := s.store.Revoke(s.ctx(), lost.id)
		return errors.Is(err, ErrUnconfirmed) // there is no replica
	})
	asked := s.stillSaysOK(t, func() bool { return ctx.Err() == nil })
	woken := time.Now()
	s.primary.Thaw()
	s.cluster.AwaitWhole()
	cancel()
	wait()
	last := asked()
	if limit := woken.Add(redistest.NodeTimeout); last.After(limit) {
		t.Errorf("a primary that was replaced still verified a revoked token %v after it woke up", last.Sub(woken))
	}
	t.Attr("woken_primary_verified_a_revoked_token_for", max(0, last.Sub(woken)).Round(time.Millisecond).String())
	if got := s.says(lost, lost.have); got != string(wire.CodeRevoked) {
		t.Errorf("the revoked token is %s afterwards, want revoked", got)
	}
	s.enrol(lost)
	if handedOut != 0 {
		t.Errorf("%d rotations were handed out by a primary that was none any more", handedOut)
	}
	s.intact(t)
}

// intact wants every device in with what it had.
func (s *shard) intact(t *testing.T) {
	t.Helper()
	for _, d := range s.devices {
		if got := s.says(d, d.have); got != "ok" {
			t.Errorf("a device's token is %s afterwards, want ok", got)
		}
	}
}
