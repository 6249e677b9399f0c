// Package token keeps the devices' tokens in Redis: who holds which, until when, and what
// becomes of one that is rotated, lost, replayed or revoked (docs/PROTOCOL.md, "Tokens").
//
// A device has one record, the hash goshield:token:{client_id}, and each operation is one Lua
// script on it, which takes the time from Redis: so operations on one device happen one after the
// other, whatever clocks and however many auth-services there are. Redis holds hashes of tokens
// only. The scripts (lua/*.lua) are the state machine; the Go code here runs them on the record's
// own primary, waits for a replica, and gives the answers types.
//
//	                 issue                rotate                 verify(next)
//	(none, revoked) ───────▶ cur ───────────────────▶ cur, next ──────────────▶ cur, prev
//	                          ▲ grace passes, or prev is retired to old             │
//	                          └─────────────────────────────────────────────────────┘
//
// An operation may be executed twice by a client that did not see the first answer (a lost
// connection, a redirect, an impatient gateway): the new token is made before the first attempt,
// and a script that finds its own work done answers as it did. So at worst a token is stored that
// nobody was told, never the other way round.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

// Names in Redis that others read.
const (
	keyPrefix = "goshield:token:"

	// RevokedStream has an entry {client_id, code, epoch} for every revocation, epoch being that of
	// the revoked record: a later session is not meant. Gateways read it. The Pub/Sub channel of
	// the same name announces "<client_id> <code>" at once.
	RevokedStream = "goshield:revoked"
)

// revokedKept is how many revocations the stream holds, roughly.
const revokedKept = 100_000

// Key is the key of a device's record. Its hash tag puts all keys of one device into one slot.
func Key(id wire.ClientID) string { return keyPrefix + "{" + id.String() + "}" }

// New makes a token: a random UUID, version 4.
func New() wire.Token {
	var t wire.Token
	_, _ = rand.Read(t[:]) // never fails
	t[6] = t[6]&0x0f | 0x40
	t[8] = t[8]&0x3f | 0x80
	return t
}

// hash is what Redis holds of a token.
func hash(t wire.Token) string {
	h := sha256.Sum256(t[:])
	return string(h[:])
}

// Rules are the times that apply to tokens at the moment of an operation.
type Rules struct {
	TTL   time.Duration // of a new token
	Grace time.Duration // how long a token goes on after its successor was used; may be 0
	// MaxTakeovers is how often a minute a device may go from one session to another; 0: as often as it
	// likes. Beyond that it gets no session for a minute.
	MaxTakeovers int
}

// Record is what an answer tells of a device's record after the operation. Durations count from
// the moment of the answer and need nobody's clock.
type Record struct {
	Generation    int64     // 1 after enrolment, one more with each token that came into force
	Epoch         int64     // of the owner; grows with each claim
	ExpiresAt     time.Time // by Redis's clock
	ExpiresIn     time.Duration
	GraceLeft     time.Duration // of the previous token; 0: it is no longer good
	PreviousOwner string        // the owner that this one replaced; "" if there was none
}

// Grant is a token that was written for a device: the answer to Issue and Rotate, and to a
// Verify that had to replace one. ExpiresAt and ExpiresIn are this token's.
type Grant struct {
	Token wire.Token
	Record
	// Confirmed: a replica has it. If not, the loss of the primary loses the token.
	Confirmed bool
}

// Verdict is the answer to a token that is good.
type Verdict struct {
	Result authapi.Result
	Fresh  wire.Token // the new current token, which the device must be told; mostly zero
	Record
}

// State is what may be known of a record. It holds nothing of the tokens.
type State struct {
	Generation  int64
	ExpiresAt   time.Time // of the current token
	Owner       string
	Epoch       int64
	LastRotated time.Time // zero: never
	Revoked     wire.Code // why; "" if it is not
}

// Refusal is the error of an operation that the rules forbid.
type Refusal struct {
	Code       wire.Code // bad_token, token_expired, token_reused, revoked, unknown_client, rate_limited or not_current
	Generation int64
	// Unfinished: the record is revoked, but not everybody may know. Call FinishRevocation.
	Unfinished bool
	// RetryAfter is what is left of a quarantine (rate_limited); else 0.
	RetryAfter time.Duration
}

// Error implements error.
func (r *Refusal) Error() string { return "refused: " + string(r.Code) }

// ErrUnconfirmed is the error of a write that must not be lost and that no replica had
// confirmed in time. It may have been made all the same; repeat it.
var ErrUnconfirmed = errors.New("no replica confirmed the write")

// ErrNoRecord is the error for a device that never enrolled, or so long ago that its
// record is gone.
var ErrNoRecord = errors.New("no token record")
