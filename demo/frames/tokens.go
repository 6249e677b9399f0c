package frames

import (
	"math/rand/v2"

	"github.com/google/uuid"

	"github.com/goshield/goshield/sdk/wire"
)

// Tokens are those of one device, by the rules in short: a new one replaces the
// old when it is first used.
type Tokens struct{ cur, next wire.Token }

// First makes the token that the device begins with.
func (t *Tokens) First() wire.Token {
	t.cur, t.next = wire.Token(uuid.New()), wire.Token{}
	return t.cur
}

// Next is the successor that is waiting to be used; now and then, at random, it
// makes one. Zero: there is none.
func (t *Tokens) Next() wire.Token {
	if t.next.IsZero() && rand.IntN(2) == 0 {
		t.next = wire.Token(uuid.New())
	}
	return t.next
}

// Knows checks a token that the device shows.
func (t *Tokens) Knows(shown wire.Token) bool {
	if shown == t.next && !shown.IsZero() {
		t.cur, t.next = t.next, wire.Token{}
	}
	return shown == t.cur && !shown.IsZero()
}
