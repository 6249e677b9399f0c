package client

import (
	"fmt"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// credentials holds a device's tokens by the rules of docs/PROTOCOL.md: a new
// token is stored before it is first sent; the one before is kept until a frame with the
// new one was answered; a new one that is refused as bad_token gives way to the one
// before, once; then the device enrols. Losing an ack, the connection or power at any
// moment leaves at least one token that works.
type credentials struct {
	store TokenStore
	id    wire.ClientID

	saving sync.Mutex // held over a change, so over a Save; before mu

	mu     sync.Mutex
	tokens Tokens
	gen    uint64 // counts the changes of tokens.Current
}

func loadCredentials(store TokenStore, id wire.ClientID) (*credentials, error) {
	tokens, err := store.Load(id)
	if err != nil {
		return nil, err
	}
	return &credentials{store: store, id: id, tokens: tokens}, nil
}

// present returns the token to send now, zero if there is none, and its
// generation.
func (c *credentials) present() (wire.Token, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tokens.Current, c.gen
}

// enrolled takes the first token of a new record: none from before is of any use.
func (c *credentials) enrolled(token wire.Token, expires time.Time) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	return c.replace(Tokens{Current: token, ExpiresAt: expires})
}

// rotate takes a successor. It reports whether it was new: a gateway repeats
// it in every ack until it is used. On an error nothing has changed.
func (c *credentials) rotate(token wire.Token, expires time.Time) (isNew bool, err error) {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	old := c.tokens
	c.mu.Unlock()
	if token == old.Current {
		return false, nil
	}
	next := Tokens{Current: token, ExpiresAt: expires, Previous: old.Current}
	if !old.Previous.IsZero() {
		// Current was never answered and is replaced: the gateway may have forgotten it, and
		// knows the one before.
		next.Previous = old.Previous
	}
	return true, c.replace(next)
}

// answered notes that a frame with the token of that generation was accepted.
func (c *credentials) answered(gen uint64) error {
	c.mu.Lock()
	nothingToDo := gen != c.gen || c.tokens.Previous.IsZero()
	c.mu.Unlock()
	if nothingToDo {
		return nil
	}
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	if gen != c.gen {
		c.mu.Unlock()
		return nil
	}
	c.tokens.Previous = wire.Token{}
	tokens := c.tokens
	c.mu.Unlock()
	if err := c.store.Save(c.id, tokens); err != nil {
		return fmt.Errorf("forget the token before: %w", err)
	}
	return nil
}

// refused notes that the gateway did not accept the token: what present returns next is another
// one, or none. The store is left alone until there is something better: a
// restart would only repeat this.
func (c *credentials) refused(token wire.Token, code wire.Code) {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if token != c.tokens.Current {
		return
	}
	next := Tokens{}
	if code == wire.CodeBadToken {
		next.Current = c.tokens.Previous
	}
	c.tokens = next
	c.gen++
}

// replace is called with saving held.
func (c *credentials) replace(t Tokens) error {
	if err := c.store.Save(c.id, t); err != nil {
		return fmt.Errorf("keep the new token: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens = t
	c.gen++
	return nil
}

// refusesToken reports whether a code says that the token is of no use.
func refusesToken(code wire.Code) bool {
	switch code {
	case wire.CodeBadToken, wire.CodeTokenExpired, wire.CodeTokenReused, wire.CodeRevoked:
		return true
	}
	return false
}
