package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Tokens is what a device keeps over a restart.
type Tokens struct {
	Current   wire.Token // zero: the device has to enrol
	ExpiresAt time.Time  // of Current, by the gateway's clock
	// Previous is the token before Current, kept until a frame with Current was
	// answered; zero: it was.
	Previous wire.Token
}

// TokenStore keeps devices' tokens. A client calls it from one goroutine at a
// time; one store may serve many clients.
type TokenStore interface {
	// Load returns what was saved last, or zero Tokens.
	Load(id wire.ClientID) (Tokens, error)
	// Save returns when the tokens would survive a loss of power.
	Save(id wire.ClientID, t Tokens) error
}

// MemoryStore keeps tokens as long as the process lives: for tests, and for
// devices that may enrol each time they start.
func MemoryStore() TokenStore { return &memoryStore{tokens: make(map[wire.ClientID]Tokens)} }

type memoryStore struct {
	mu     sync.Mutex
	tokens map[wire.ClientID]Tokens
}

func (s *memoryStore) Load(id wire.ClientID) (Tokens, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[id], nil
}

func (s *memoryStore) Save(id wire.ClientID, t Tokens) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[id] = t
	return nil
}

// FileStore keeps each device's tokens in a file of dir, named after its
// client_id, readable by its owner only. It makes dir if there is none. A file that
// cannot be understood counts as none: the device enrols and overwrites it.
func FileStore(dir string) (TokenStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("token store: %w", err)
	}
	return &fileStore{dir: dir}, nil
}

type fileStore struct{ dir string }

// tokenFile is a file's content, as JSON.
type tokenFile struct {
	Token     wire.Token `json:"token"`
	ExpiresAt int64      `json:"expires_at"` // Unix ms
	Previous  wire.Token `json:"previous"`
}

func (s *fileStore) path(id wire.ClientID) string {
	return filepath.Join(s.dir, id.String()+".json")
}

func (s *fileStore) Load(id wire.ClientID) (Tokens, error) {
	data, err := os.ReadFile(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return Tokens{}, nil
	}
	if err != nil {
		return Tokens{}, fmt.Errorf("token store: %w", err)
	}
	var f tokenFile
	if broken := json.Unmarshal(data, &f); broken != nil {
		return Tokens{}, nil //nolint:nilerr // as FileStore says
	}
	return Tokens{Current: f.Token, ExpiresAt: time.UnixMilli(f.ExpiresAt), Previous: f.Previous}, nil
}

// Save writes a new file beside the old one and puts it in its place: whatever
// happens, one of the two is there and whole.
func (s *fileStore) Save(id wire.ClientID, t Tokens) error {
	data, err := json.Marshal(tokenFile{Token: t.Current, ExpiresAt: t.ExpiresAt.UnixMilli(), Previous: t.Previous})
	if err != nil {
		return fmt.Errorf("token store: %w", err)
	}
	f, err := os.CreateTemp(s.dir, ".token-*") // mode 0600
	if err != nil {
		return fmt.Errorf("token store: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.path(id))
	}
	if err != nil {
		return fmt.Errorf("token store: %w", errors.Join(err, os.Remove(f.Name())))
	}
	if err := syncDir(s.dir); err != nil {
		return fmt.Errorf("token store: %w", err)
	}
	return nil
}

// syncDir makes a rename within dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
