package token

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/device"
)

// Store is the token records of all devices. It is safe for concurrent use, by
// any number of processes at once.
//
// Its methods return a *Refusal where the rules forbid the operation; any other
// error means that Redis could not be asked, or that its answer did not come: then the operation
// may or may not have happened, and may be repeated. They return soon after ctx ends, so
// give them one that does.
type Store struct {
	rdb      redis.UniversalClient
	scripts  scripts
	replicas *replicas
	batches  *batches
	generate func() wire.Token
	wait     time.Duration // for a replica to confirm a write
}

// NewStore keeps records in rdb, which stays the caller's to close.
func NewStore(rdb redis.UniversalClient, log *zap.Logger) *Store {
	return &Store{rdb: rdb, scripts: newScripts(), replicas: newReplicas(rdb, log), batches: newBatches(), generate: New, wait: defaultWait}
}

// WaitFor sets how long a write waits for a replica, where 50 ms is not enough. It may be called before the store is used.
func (s *Store) WaitFor(d time.Duration) { s.wait = d }

// Unconfirmed returns the addresses of the primaries whose writes no replica confirms, or would not: while there is one, rotations of its
// devices and revocations fail. It asks Redis, and is to be called each second or so. A Redis without replicas has none.
func (s *Store) Unconfirmed(ctx context.Context) []string { return s.replicas.unconfirmed(ctx) }

// Enrolment asks for a device's first token.
type Enrolment struct {
	ClientID wire.ClientID
	Owner    string // "node/session", not empty
	// RegisteredOnly refuses a device without a registration as unknown_client. A blocked
	// one always is.
	RegisteredOnly bool
}

// Issue replaces a device's record with one of a single, new token.
func (s *Store) Issue(ctx context.Context, e Enrolment, rules Rules) (Grant, error) {
	fresh := s.generate()
	registered := "0"
	if e.RegisteredOnly {
		registered = "1"
	}
	r, confirmed, err := s.run(ctx, s.scripts.issue, true, []string{Key(e.ClientID), device.Key(e.ClientID)},
		hash(fresh), millis(rules.TTL), e.Owner, registered, rules.MaxTakeovers)
	if err != nil {
		return Grant{}, fmt.Errorf("issue: %w", err)
	}
	if r.code != answerOK {
		return Grant{}, r.refusal()
	}
	return Grant{Token: fresh, Record: r.record(), Confirmed: confirmed}, nil
}

// Verify decides on a token that a device presented. A claim makes owner
// the device's owner; owner "" is a verify without one.
func (s *Store) Verify(ctx context.Context, id wire.ClientID, t wire.Token, owner string, rules Rules) (Verdict, error) {
	var fresh wire.Token
	freshHash := ""
	if owner != "" {
		fresh = s.generate()
		freshHash = hash(fresh)
	}
	// No WAIT: a promotion that is lost with its primary is made again, since next was confirmed
	// when it was rotated; a claim or a fresh token that is lost costs an enrolment.
	r, _, err := s.run(ctx, s.scripts.verify, false, []string{Key(id)},
		hash(t), millis(rules.Grace), millis(rules.TTL), owner, freshHash, rules.MaxTakeovers)
	if err != nil {
		return Verdict{}, fmt.Errorf("verify: %w", err)
	}
	v := Verdict{Result: authapi.Result(r.code), Record: r.record()}
	if owner == "" {
		v.PreviousOwner = "" // an earlier claim's
	}
	switch v.Result {
	case authapi.ResultOK, authapi.ResultPromoted:
		return v, nil
	case authapi.ResultPrevious:
		v.Fresh = fresh // zero without a claim
		return v, nil
	}
	return Verdict{}, r.refusal()
}

// Rotate writes a successor of the current token t, which is in force once the
// device presents it. One that was written before and not presented is forgotten. owner is the
// session that asks: another than the record's is refused with not_current, and so is a t that is
// the previous token, and a call that another rotation has overtaken. ErrUnconfirmed: hand nothing out.
func (s *Store) Rotate(ctx context.Context, id wire.ClientID, t wire.Token, owner string, rules Rules) (Grant, error) {
	// The script replaces only the successor that it is told of. A call that was given up may still be carried
	// out, late; without this it would replace the token that its repetition has handed out. Mostly there is none.
	next := s.generate()
	rotate := func(seen string) (reply, bool, error) {
		return s.run(ctx, s.scripts.rotate, true, []string{Key(id)},
			hash(t), hash(next), millis(rules.TTL), owner, millis(rules.Grace), seen)
	}
	r, confirmed, err := rotate("")
	if err == nil && r.code == answerOvertaken {
		r, confirmed, err = rotate(r.was)
	}
	if err == nil && r.code == answerOvertaken {
		r.code = string(authapi.CodeNotCurrent)
	}
	if err != nil {
		return Grant{}, fmt.Errorf("rotate: %w", err)
	}
	if r.code != answerOK {
		return Grant{}, r.refusal()
	}
	if !confirmed {
		return Grant{}, fmt.Errorf("rotate: %w", ErrUnconfirmed)
	}
	g := Grant{Token: next, Record: r.record(), Confirmed: true}
	g.PreviousOwner = "" // of the claim before
	return g, nil
}

// Revoke makes a device's tokens invalid and tells every gateway; why is the code they are told,
// "revoked", or "token_reused" where a replay revoked the record before. ErrUnconfirmed, or
// any other error: repeat it. ErrNoRecord: there is nothing to revoke.
func (s *Store) Revoke(ctx context.Context, id wire.ClientID) (why wire.Code, err error) {
	return s.revoke(ctx, id, "0")
}

// FinishRevocation is Revoke for a record that a script revoked already (Refusal.Unfinished).
// One that was enrolled anew since is left alone: ErrNoRecord.
func (s *Store) FinishRevocation(ctx context.Context, id wire.ClientID) (why wire.Code, err error) {
	return s.revoke(ctx, id, "1")
}

func (s *Store) revoke(ctx context.Context, id wire.ClientID, onlyRevoked string) (why wire.Code, err error) {
	r, confirmed, err := s.run(ctx, s.scripts.revoke, true, []string{Key(id)}, onlyRevoked)
	switch {
	case err != nil:
		return "", fmt.Errorf("revoke: %w", err)
	case r.code == string(wire.CodeBadToken):
		return "", ErrNoRecord
	}
	why = wire.Code(r.code)
	announced, err := s.announce(ctx, id, why, r.epoch)
	switch {
	case err != nil:
		return why, fmt.Errorf("revoke: announce: %w", err)
	case !confirmed || !announced:
		return why, fmt.Errorf("revoke: %w", ErrUnconfirmed)
	}
	// Should another revocation have come between, it announces itself.
	if err := s.rdb.HDel(ctx, Key(id), "unannounced").Err(); err != nil {
		return why, fmt.Errorf("revoke: %w", err)
	}
	return why, nil
}

// announce tells the gateways of a revocation: for certain by the stream, at once by Pub/Sub. Sessions
// of a later epoch are not meant.
func (s *Store) announce(ctx context.Context, id wire.ClientID, why wire.Code, epoch int64) (confirmed bool, err error) {
	_, confirmed, err = s.onPrimary(ctx, RevokedStream, true, func(ctx context.Context, p redis.Pipeliner) redis.Cmder {
		return p.XAdd(ctx, &redis.XAddArgs{Stream: RevokedStream, MaxLen: revokedKept, Approx: true,
			Values: []any{"client_id", id.String(), "code", string(why), "epoch", epoch}})
	})
	if err != nil {
		return false, err
	}
	return confirmed, s.rdb.Publish(ctx, RevokedStream, id.String()+" "+string(why)).Err()
}

// Release clears the owner of each record whose epoch is still the one given, and counts them.
// Releases are not waited for: a lost one is an owner whose node no longer knows the session.
func (s *Store) Release(ctx context.Context, sessions []authapi.Release) (released int, err error) {
	bySHA := func(p redis.Pipeliner, x authapi.Release) *redis.Cmd {
		return p.EvalSha(ctx, s.scripts.release.sha, []string{Key(x.ClientID)}, x.Epoch)
	}
	bySource := func(p redis.Pipeliner, x authapi.Release) *redis.Cmd {
		return p.Eval(ctx, s.scripts.release.source, []string{Key(x.ClientID)}, x.Epoch)
	}
	released, unknown, err := s.releaseBy(ctx, sessions, bySHA)
	if err == nil && len(unknown) > 0 {
		var more int
		more, _, err = s.releaseBy(ctx, unknown, bySource)
		released += more
	}
	if err != nil {
		return released, fmt.Errorf("release: %w", err)
	}
	return released, nil
}

// releaseBy sends one command per session in one pipeline; unknown are those whose node does not
// know the script yet.
func (s *Store) releaseBy(ctx context.Context, sessions []authapi.Release,
	queue func(redis.Pipeliner, authapi.Release) *redis.Cmd) (released int, unknown []authapi.Release, err error) {
	cmds := make([]*redis.Cmd, len(sessions))
	_, _ = s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error { // each command has its own error
		for i, x := range sessions {
			cmds[i] = queue(p, x)
		}
		return nil
	})
	for i, cmd := range cmds {
		n, cmdErr := cmd.Int()
		switch {
		case cmdErr == nil:
			released += n
		case redis.HasErrorPrefix(cmdErr, "NOSCRIPT"):
			unknown = append(unknown, sessions[i])
		default:
			err = cmdErr
		}
	}
	return released, unknown, err
}

// Get reads a record. ErrNoRecord: there is none.
func (s *Store) Get(ctx context.Context, id wire.ClientID) (State, error) {
	values, err := s.rdb.HMGet(ctx, Key(id), "cur_exp", "gen", "owner", "epoch", "rotated", "revoked").Result()
	if err != nil {
		return State{}, fmt.Errorf("get: %w", err)
	}
	if values[0] == nil {
		return State{}, ErrNoRecord
	}
	var numbers [3]int64
	for i, at := range []int{0, 1, 3} {
		text, _ := values[at].(string)
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return State{}, fmt.Errorf("get: the record is damaged: %w", err)
		}
	}
	st := State{ExpiresAt: time.UnixMilli(numbers[0]), Generation: numbers[1], Epoch: numbers[2]}
	st.Owner, _ = values[2].(string)
	if text, ok := values[4].(string); ok {
		ms, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return State{}, fmt.Errorf("get: the record is damaged: %w", err)
		}
		st.LastRotated = time.UnixMilli(ms)
	}
	if text, ok := values[5].(string); ok {
		st.Revoked = wire.Code(text)
	}
	return st, nil
}

// run executes a script of record.lua on the first key's primary.
func (s *Store) run(ctx context.Context, sc script, wait bool, keys []string, args ...any) (reply, bool, error) {
	cmd, confirmed, err := s.onPrimary(ctx, keys[0], wait, func(ctx context.Context, p redis.Pipeliner) redis.Cmder {
		return p.EvalSha(ctx, sc.sha, keys, args...)
	})
	if redis.HasErrorPrefix(err, "NOSCRIPT") || errors.Is(err, redis.ErrNoScript) {
		cmd, confirmed, err = s.onPrimary(ctx, keys[0], wait, func(ctx context.Context, p redis.Pipeliner) redis.Cmder {
			return p.Eval(ctx, sc.source, keys, args...)
		})
	}
	if err != nil {
		return reply{}, false, err
	}
	r, err := parseReply(cmd.(*redis.Cmd))
	return r, confirmed, err
}

func millis(d time.Duration) int64 { return d.Milliseconds() }
