package token

import (
	"errors"
	"fmt"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

// What the actors of the model check do: the device, its gateway, the thief, the administrator.

// present verifies a token and holds the answer against the model. It returns the model's word.
func (p *play) present(t wire.Token, owner string) (string, Verdict) {
	p.t.Helper()
	now, grace := p.now(), p.rules.Grace.Milliseconds()
	v, err := p.store.Verify(p.ctx(), p.id, t, owner, p.rules)
	var refusal *Refusal
	got := string(v.Result)
	if errors.As(err, &refusal) {
		got = string(refusal.Code)
	} else if err != nil {
		p.fail("verify: %v", err)
	}
	which := p.want.presented(t, now)
	want := which
	switch which {
	case "cur":
		want = "ok"
	case "next":
		want = "promoted"
		p.want.promote(now, grace)
		p.stale = wire.Token{}
	case "prev":
		want = "previous"
		if owner != "" {
			p.want.retire(p.want.cur)
			p.want.cur, p.want.curExp, p.want.gen = v.Fresh, now+p.rules.TTL.Milliseconds(), p.want.gen+1
			p.want.next, p.want.nextExp = wire.Token{}, 0
			p.tokens = append(p.tokens, v.Fresh)
		}
	}
	if got != want {
		p.fail("verify says %s, want %s", got, want)
	}
	if owner != "" && err == nil {
		if before := p.want.owner; v.PreviousOwner != before {
			p.fail("claim: taken from %q, want %q", v.PreviousOwner, before)
		}
		if v.Epoch <= p.want.epoch {
			p.fail("claim: epoch %d after %d", v.Epoch, p.want.epoch)
		}
		p.want.owner, p.want.epoch = owner, v.Epoch
	}
	return which, v
}

// enrol is a HELLO without a token; the WELCOME may be lost.
func (p *play) enrol() {
	p.t.Helper()
	now, undo := p.now(), p.undo(20)
	p.sessions++
	owner := fmt.Sprintf("n%d/%d", p.rng.IntN(2), p.sessions)
	g, err := p.store.Issue(p.ctx(), Enrolment{ClientID: p.id, Owner: owner}, p.rules)
	if err != nil {
		p.fail("issue: %v", err)
	}
	if g.PreviousOwner != p.want.owner || g.Epoch <= p.want.epoch {
		p.fail("issue: taken from %q at %d, want %q after %d", g.PreviousOwner, g.Epoch, p.want.owner, p.want.epoch)
	}
	p.want = record{exists: true, cur: g.Token, curExp: now + p.rules.TTL.Milliseconds(), gen: 1, owner: owner, epoch: g.Epoch}
	p.tokens = append(p.tokens, g.Token)
	p.excuse = ""
	p.have, p.fallback, p.session, p.pending, p.stale = g.Token, wire.Token{}, p.sessions, wire.Token{}, wire.Token{}
	p.note("enrolled as %s", owner)
	if undo != nil { // unconfirmed, issued all the same, and lost
		undo()
		p.excuse = "a failover lost its enrolment"
	}
	if p.unlucky(10) {
		p.note("WELCOME lost")
		p.have, p.session = wire.Token{}, 0
	}
}

// connect resumes with what the device holds: the new token, once the old one; then it enrols.
func (p *play) connect() {
	p.t.Helper()
	if p.session != 0 {
		p.stale = p.pending
	}
	p.session, p.pending = 0, wire.Token{}
	if p.have.IsZero() {
		p.enrol()
		return
	}
	p.sessions++
	owner := fmt.Sprintf("n%d/%d", p.rng.IntN(2), p.sessions)
	which, v := p.present(p.have, owner)
	p.note("connects as %s: %s", owner, which)
	if which == "bad_token" && !p.fallback.IsZero() {
		p.have, p.fallback = p.fallback, wire.Token{}
		which, v = p.present(p.have, owner)
		p.note("with the token before: %s", which)
	}
	switch which {
	case "cur", "next", "prev":
		if p.unlucky(10) {
			p.note("WELCOME lost")
			return
		}
		if !v.Fresh.IsZero() {
			p.have = v.Fresh
		}
		p.session, p.fallback = p.sessions, wire.Token{}
	default:
		p.excused(which)
		p.have, p.fallback = wire.Token{}, wire.Token{}
		p.enrol()
	}
}

// excused fails if an honest device has no excuse for being refused.
func (p *play) excused(which string) {
	p.t.Helper()
	if which != "token_expired" && p.excuse == "" {
		p.fail("an honest device is locked out: %s", which)
	}
}

// heartbeat presents the current token; the gateway may rotate, and the ack may be lost.
func (p *play) heartbeat() {
	p.t.Helper()
	if p.session == 0 || !p.frame() {
		return
	}
	if p.pending.IsZero() && p.unlucky(2) {
		p.rotate()
	}
	switch {
	case p.session != 0 && !p.pending.IsZero() && !p.unlucky(5):
		p.keepToken("the new token", p.pending)
	case !p.stale.IsZero() && p.unlucky(2):
		p.keepToken("the new token of the connection before", p.stale)
		p.stale = wire.Token{}
	}
}

// keepToken is the device storing a token that an ack brought, durably, before it sends it.
func (p *play) keepToken(what string, t wire.Token) {
	if p.have != t {
		p.have, p.fallback = t, p.have
		p.note("stores %s", what)
	}
}

// frame sends a frame with the token the device has. The gateway knows cur without a call; here it
// always asks. It reports whether the connection lives on.
func (p *play) frame() bool {
	p.t.Helper()
	undo := p.undo(20)
	which, _ := p.present(p.have, "")
	switch which {
	case "cur", "next":
		if undo != nil {
			undo() // a promotion; the gateway knows better, and takes the token for current
		}
		p.pending = wire.Token{}
		if !p.unlucky(5) { // answered
			p.fallback = wire.Token{}
		}
		return true
	case "prev":
		return true
	}
	p.note("frame: %s", which)
	if which != "bad_token" || p.fallback.IsZero() {
		p.excused(which)
	}
	p.session = 0
	return false
}

func (p *play) request() {
	if p.session != 0 {
		p.frame()
	}
}

// rotate is the gateway's. It may crash, or lose its primary, before it tells anybody.
func (p *play) rotate() {
	p.t.Helper()
	now, undo := p.now(), p.undo(10)
	owner := p.want.owner
	g, err := p.store.Rotate(p.ctx(), p.id, p.have, owner, p.rules)
	which := p.want.presented(p.have, now)
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		if which == "prev" && refusal.Code == authapi.CodeNotCurrent || which == string(refusal.Code) {
			return
		}
		p.fail("rotate says %s, want %s", refusal.Code, which)
	case err != nil:
		p.fail("rotate: %v", err)
	}
	if which == "next" {
		p.want.promote(now, p.rules.Grace.Milliseconds())
	} else if which != "cur" {
		p.fail("rotate says ok, want %s", which)
	}
	p.want.next, p.want.nextExp = g.Token, now+p.rules.TTL.Milliseconds()
	switch {
	case undo != nil:
		undo() // unconfirmed: handed to nobody
	case p.unlucky(10):
		p.note("rotated, the gateway crashes")
		p.session = 0
	default:
		p.note("rotated")
		p.pending = g.Token
		p.tokens = append(p.tokens, g.Token)
	}
}

func (p *play) disconnect() {
	if p.session == 0 {
		return
	}
	p.session, p.pending, p.stale = 0, wire.Token{}, p.pending
	if p.unlucky(3) {
		p.note("the gateway crashes")
		return
	}
	epoch := p.want.epoch
	if p.unlucky(3) {
		epoch-- // a session that was taken over long ago
	}
	n, err := p.store.Release(p.ctx(), []authapi.Release{{ClientID: p.id, Epoch: epoch}})
	if err != nil {
		p.fail("release: %v", err)
	}
	if want := p.want.exists && p.want.owner != "" && epoch == p.want.epoch; (n == 1) != want {
		p.fail("released %d, want %v", n, want)
	}
	if n == 1 {
		p.want.owner = ""
	}
	p.note("disconnects, %d released", n)
}

func (p *play) letTimePass() {
	ms := []int64{1, 999, 1000, 60_000, 3_600_000 - 1, 3_600_000, 3 * 3_600_000, 9 * 3_600_000}[min(p.rng.IntN(12), 7)]
	if p.mini == nil {
		ms = max(ms, 120_000)
	}
	p.elapse(ms)
	p.note("%d ms pass", ms)
}

// guess presents a token that nobody was given; or, a gateway that lost the device without
// noticing rotates.
func (p *play) guess() {
	p.t.Helper()
	if p.want.exists && p.want.owner != "" && p.unlucky(4) {
		now := p.now()
		_, err := p.store.Rotate(p.ctx(), p.id, p.want.cur, "frozen/1", p.rules)
		want := p.want.presented(p.want.cur, now)
		if want == "cur" {
			want = string(authapi.CodeNotCurrent)
		}
		if got := said(p.t, "ok", err); got != want {
			p.fail("rotate by another than the owner says %s, want %s", got, want)
		}
		return
	}
	if which, _ := p.present(p.generate(), ""); which != "bad_token" && which != "revoked" {
		p.fail("a guess is %s", which)
	}
}

// replay presents a token that was replaced. It must not be accepted, but for its grace.
func (p *play) replay() {
	p.t.Helper()
	if len(p.tokens) == 0 {
		return
	}
	stolen := p.tokens[p.rng.IntN(len(p.tokens))]
	if stolen == p.want.cur || stolen == p.want.next {
		return // that is theft of a token in force, which no rule notices yet
	}
	owner := ""
	if p.unlucky(4) {
		p.sessions++
		owner = fmt.Sprintf("thief/%d", p.sessions)
	}
	which, _ := p.present(stolen, owner)
	p.note("replay by %q: %s", owner, which)
	switch {
	case which == "cur" || which == "next":
		p.fail("a replayed token is %s", which)
	case which == "token_reused":
		p.excuse = "a replay revoked it"
	case which == "prev" && owner != "":
		p.excuse = "a thief resumed within the grace" // and has the only token now
	}
}

func (p *play) administrator() {
	p.t.Helper()
	_, err := p.store.Revoke(p.ctx(), p.id)
	if !p.want.exists {
		if !errors.Is(err, ErrNoRecord) {
			p.fail("revoke: %v, want ErrNoRecord", err)
		}
		return
	}
	if err != nil {
		p.fail("revoke: %v", err)
	}
	if p.want.revoked == "" {
		p.want.revoked = "revoked"
	}
	p.excuse = "an administrator revoked it"
	p.note("revoked")
}
