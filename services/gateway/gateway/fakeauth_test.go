package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/authclient"
)

// zapLevel is what tests print of the gateway's log.
const zapLevel = zapcore.ErrorLevel

// groupKey is the fleet's key where tests enrol with a proof.
var groupKey = []byte("0123456789abcdef0123456789abcdef")

// fakeAuth keeps tokens by the rules of docs/PROTOCOL.md, in memory and by the
// test's clock.
type fakeAuth struct {
	mu              sync.Mutex
	rules           dynamic.Token
	devices         map[wire.ClientID]*fakeDevice
	down            bool
	delay           time.Duration
	needKey         bool
	needCertificate bool // in mode mtls
	calls           map[string]int
	released        []authapi.Release
	lastIP          string
	// lost: what is asked of it is done, and the answer gets lost.
	lost bool
	// noRotation answers rotations with unavailable.
	noRotation bool
}

// errLost is what a caller sees of an answer that got lost.
var errLost = &authclient.Unavailable{Err: errors.New("the answer got lost")}

type fakeDevice struct {
	cur, next, prev wire.Token
	curExp, nextExp time.Time
	prevUntil       time.Time
	old             []wire.Token
	owner           string
	epoch           int64
	revoked         bool
}

func newFakeAuth(rules dynamic.Token) *fakeAuth {
	return &fakeAuth{rules: rules, devices: map[wire.ClientID]*fakeDevice{}, calls: map[string]int{}}
}

// set changes something under the lock.
func (a *fakeAuth) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *fakeAuth) called(operation string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[operation]
}

func newToken() (t wire.Token) {
	_, _ = rand.Read(t[:])
	t[6], t[8] = t[6]&0x0f|0x40, t[8]&0x3f|0x80
	return t
}

// begin counts a call, takes its time, and fails it if auth-service is away. mu is held after it.
func (a *fakeAuth) begin(ctx context.Context, operation string) error {
	a.mu.Lock()
	a.calls[operation]++
	delay := a.delay
	a.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	a.mu.Lock()
	if a.down {
		return &authclient.Unavailable{Err: errors.New("it is down")}
	}
	return nil
}

// claim makes owner the owner; previous is another one that had it.
func (d *fakeDevice) claim(owner string) (previous string) {
	if d.owner != owner {
		previous = d.owner
	}
	d.owner = owner
	d.epoch = max(d.epoch+1, time.Now().UnixMicro())
	return previous
}

func (a *fakeAuth) Issue(ctx context.Context, r authapi.IssueRequest) (authapi.IssueAnswer, error) {
	err := a.begin(ctx, "issue")
	defer a.mu.Unlock()
	if err != nil {
		return authapi.IssueAnswer{}, err
	}
	a.lastIP = r.RemoteIP
	if a.needKey {
		if len(r.Nonce) != 32 || len(r.Binding) != 32 {
			return authapi.IssueAnswer{}, wire.Errorf(wire.CodeBadProof, "no proof")
		}
		want := wire.ProofOf(wire.DeviceKey(groupKey, r.ClientID), [32]byte(r.Nonce), [32]byte(r.Binding), r.ClientID)
		if !hmac.Equal(want[:], r.Proof) {
			return authapi.IssueAnswer{}, wire.Errorf(wire.CodeBadProof, "a wrong proof")
		}
	}
	if a.needCertificate && r.CertificateClientID != r.ClientID.String() {
		return authapi.IssueAnswer{}, wire.Errorf(wire.CodeBadProof, "no certificate of that name")
	}
	d := a.devices[r.ClientID]
	if d == nil {
		d = &fakeDevice{}
		a.devices[r.ClientID] = d
	}
	*d = fakeDevice{cur: newToken(), curExp: time.Now().Add(a.rules.TTL.D()), owner: d.owner, epoch: d.epoch}
	previous := d.claim(r.Owner)
	if a.lost {
		return authapi.IssueAnswer{}, errLost
	}
	return authapi.IssueAnswer{Token: d.cur, ExpiresAt: d.curExp.UnixMilli(), ExpiresIn: a.rules.TTL.D().Milliseconds(), Epoch: d.epoch, PreviousOwner: previous}, nil
}

func (a *fakeAuth) Verify(ctx context.Context, r authapi.VerifyRequest) (authapi.VerifyAnswer, error) {
	err := a.begin(ctx, "verify")
	defer a.mu.Unlock()
	if err != nil {
		return authapi.VerifyAnswer{}, err
	}
	d := a.devices[r.ClientID]
	if d == nil {
		return authapi.VerifyAnswer{}, wire.Errorf(wire.CodeBadToken, "no such record")
	}
	answer, refused := a.judge(d, r)
	if refused != nil {
		return authapi.VerifyAnswer{}, refused
	}
	if r.Claim != nil {
		answer.PreviousOwner = d.claim(r.Claim.Owner)
	}
	answer.Epoch = d.epoch
	if a.lost {
		return authapi.VerifyAnswer{}, errLost
	}
	return answer, nil
}

// judge is PROTOCOL.md's table. mu is held.
func (a *fakeAuth) judge(d *fakeDevice, r authapi.VerifyRequest) (answer authapi.VerifyAnswer, refused *wire.Error) {
	now := time.Now()
	left := func(t time.Time) int64 { return t.Sub(now).Milliseconds() }
	switch {
	case d.revoked:
		return answer, wire.Errorf(wire.CodeRevoked, "revoked")
	case r.Token == d.cur && now.Before(d.curExp):
		return authapi.VerifyAnswer{Result: authapi.ResultOK, ExpiresAt: d.curExp.UnixMilli(), ExpiresIn: left(d.curExp)}, nil
	case r.Token == d.next && !d.next.IsZero() && now.Before(d.nextExp):
		d.retire(d.prev)
		d.prev, d.prevUntil = d.cur, now.Add(a.rules.Grace.D())
		d.cur, d.curExp, d.next = d.next, d.nextExp, wire.Token{}
		return authapi.VerifyAnswer{Result: authapi.ResultPromoted, ExpiresAt: d.curExp.UnixMilli(), ExpiresIn: left(d.curExp), GraceMS: a.rules.Grace.D().Milliseconds()}, nil
	case r.Token == d.prev && !d.prev.IsZero() && now.Before(d.prevUntil):
		if r.Claim == nil {
			return authapi.VerifyAnswer{Result: authapi.ResultPrevious, ExpiresAt: d.curExp.UnixMilli(), ExpiresIn: left(d.prevUntil)}, nil
		}
		d.retire(d.cur)
		d.cur, d.curExp = newToken(), now.Add(a.rules.TTL.D())
		fresh := d.cur
		return authapi.VerifyAnswer{Result: authapi.ResultPrevious, ExpiresAt: d.curExp.UnixMilli(), ExpiresIn: left(d.curExp), Token: &fresh}, nil
	case r.Token == d.cur || (r.Token == d.next && !d.next.IsZero()):
		return answer, wire.Errorf(wire.CodeTokenExpired, "expired")
	case r.Token == d.prev || d.isOld(r.Token):
		d.revoked = true
		return answer, wire.Errorf(wire.CodeTokenReused, "reused")
	}
	return answer, wire.Errorf(wire.CodeBadToken, "not this device's")
}

func (d *fakeDevice) retire(t wire.Token) {
	if !t.IsZero() {
		d.old = append(d.old, t)
	}
}

func (d *fakeDevice) isOld(t wire.Token) bool {
	for _, o := range d.old {
		if o == t {
			return true
		}
	}
	return false
}

func (a *fakeAuth) Rotate(ctx context.Context, r authapi.RotateRequest) (authapi.RotateAnswer, error) {
	err := a.begin(ctx, "rotate")
	defer a.mu.Unlock()
	if err == nil && a.noRotation {
		err = &authclient.Unavailable{Err: errors.New("no replica has it")}
	}
	if err != nil {
		return authapi.RotateAnswer{}, err
	}
	d := a.devices[r.ClientID]
	switch {
	case d == nil:
		return authapi.RotateAnswer{}, wire.Errorf(wire.CodeBadToken, "no such record")
	case d.revoked:
		return authapi.RotateAnswer{}, wire.Errorf(wire.CodeRevoked, "revoked")
	case d.cur != r.Token, d.owner != "" && d.owner != r.Owner:
		return authapi.RotateAnswer{}, &wire.Error{Code: authapi.CodeNotCurrent}
	}
	d.next, d.nextExp = newToken(), time.Now().Add(a.rules.TTL.D())
	return authapi.RotateAnswer{Token: d.next, ExpiresAt: d.nextExp.UnixMilli(), ExpiresIn: a.rules.TTL.D().Milliseconds()}, nil
}

func (a *fakeAuth) Release(ctx context.Context, list []authapi.Release) (authapi.ReleaseAnswer, error) {
	err := a.begin(ctx, "release")
	defer a.mu.Unlock()
	if err != nil {
		return authapi.ReleaseAnswer{}, err
	}
	n := 0
	for _, r := range list {
		if d := a.devices[r.ClientID]; d != nil && d.epoch == r.Epoch {
			d.owner = ""
			n++
		}
	}
	a.released = append(a.released, list...)
	return authapi.ReleaseAnswer{Released: n}, nil
}

// releasedCount is how many sessions were given back.
func (a *fakeAuth) releasedCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.released)
}

// ServeHTTP makes an auth-service of it.
func (a *fakeAuth) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case authapi.PathTokens:
		serveCall(w, r, http.StatusCreated, a.Issue)
	case authapi.PathVerify:
		serveCall(w, r, http.StatusOK, a.Verify)
	case authapi.PathRotate:
		serveCall(w, r, http.StatusOK, a.Rotate)
	case authapi.PathRelease:
		serveCall(w, r, http.StatusOK, a.Release)
	default:
		http.NotFound(w, r)
	}
}

func serveCall[Q, A any](w http.ResponseWriter, r *http.Request, status int, call func(context.Context, Q) (A, error)) {
	var q Q
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		writeProblem(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	answer, err := call(r.Context(), q)
	var refused *wire.Error
	switch {
	case err == nil:
		writeJSON(w, status, answer)
	case errors.As(err, &refused):
		writeProblem(w, http.StatusUnauthorized, refused.Code, refused.Message)
	default:
		writeProblem(w, http.StatusServiceUnavailable, wire.CodeAuthUnavailable, err.Error())
	}
}
