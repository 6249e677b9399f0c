// Package secret reads shared secrets from files. A file holds one secret or
// two, a line each: both are valid, the first is the one to present. So a secret
// is rotated by putting the new one first, then, when all have read it, taking
// the old one away. A file that changes is read again, without a restart.
package secret

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// checkEvery is how often, at most, a file is looked at for changes.
const checkEvery = time.Second

// minLength guards against a file that holds a placeholder.
const minLength = 16

// Secret is one or two values that are valid. It is safe for concurrent use and prints
// as "[secret]".
type Secret struct {
	path string // "" for Static; static after construction

	mu      sync.Mutex
	values  []string
	hashes  [][sha256.Size]byte // of values
	checked time.Time
	mtime   time.Time
	size    int64
}

// Open reads the file at path, which must hold one or two lines of at least 16
// bytes.
func Open(path string) (*Secret, error) {
	s := &Secret{path: path}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

// Static makes a Secret of the given values; the first is presented.
func Static(values ...string) *Secret { return &Secret{values: values, hashes: hash(values)} }

func hash(values []string) [][sha256.Size]byte {
	hashes := make([][sha256.Size]byte, len(values))
	for i, v := range values {
		hashes[i] = sha256.Sum256([]byte(v))
	}
	return hashes
}

// First is the value to present to others. Never log it.
func (s *Secret) First() string {
	values, _ := s.current()
	return values[0]
}

// Values are all that are valid, the first one first. Never log them.
func (s *Secret) Values() []string {
	values, _ := s.current()
	return slices.Clone(values)
}

// Matches reports, in time that does not depend on the values, whether
// presented is one of them.
func (s *Secret) Matches(presented string) bool {
	got := sha256.Sum256([]byte(presented))
	ok := 0
	_, hashes := s.current()
	for _, want := range hashes {
		ok |= subtle.ConstantTimeCompare(got[:], want[:])
	}
	return ok == 1
}

// MatchesBearer reports whether an Authorization header carries one of the
// values (RFC 6750 §2.1).
func (s *Secret) MatchesBearer(authorization string) bool {
	const scheme = "Bearer "
	if len(authorization) < len(scheme) || !strings.EqualFold(authorization[:len(scheme)], scheme) {
		return false
	}
	return s.Matches(authorization[len(scheme):])
}

// Format keeps the values out of any output.
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[secret]")) }

// current returns the values and their hashes, read again if the file changed. A file that
// cannot be read or is no longer valid leaves the old ones in force.
func (s *Secret) current() ([]string, [][sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path != "" && time.Since(s.checked) >= checkEvery {
		_ = s.load()
	}
	return s.values, s.hashes
}

func (s *Secret) load() error {
	s.checked = time.Now()
	info, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	if s.values != nil && info.ModTime().Equal(s.mtime) && info.Size() == s.size {
		return nil
	}
	data, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	values := strings.Fields(string(data))
	if len(values) == 0 || len(values) > 2 {
		return fmt.Errorf("%s: must hold one or two secrets, a line each, has %d", s.path, len(values))
	}
	for _, v := range values {
		if len(v) < minLength {
			return errors.New(s.path + ": a secret must be at least 16 bytes long")
		}
	}
	s.values, s.hashes, s.mtime, s.size = values, hash(values), info.ModTime(), info.Size()
	return nil
}
