// Package configdb is the dynamic document in Redis: one for all gateways and auth-services, each change a new
// version, the last 20 kept.
//
//	store := configdb.New(rdb)
//	now, err := store.Current(ctx)
//	doc, err := now.Document()
//	doc.IdleTimeout = dynamic.Duration(time.Minute)
//	entry, err := store.Put(ctx, doc, now.Version, "ops@example") // ErrConflict: somebody was faster
//
// A process that is to follow it runs a Watcher. Nothing here is on a request's path.
package configdb

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/dynamic"
)

// Keep is how many versions are kept, the one in force included.
const Keep = 20

// shared is how long a gateway's defaults are remembered after it last told them.
const shared = time.Minute

// wrongType begins Redis's answer about a key of another type.
const wrongType = "WRONGTYPE"

//go:embed put.lua
var luaPut string

var (
	// ErrNone says that no document was set: everybody goes by its own defaults.
	ErrNone = errors.New("there is no dynamic document in Redis")
	// ErrConflict says that the document has another version than the one that was to be replaced.
	ErrConflict = errors.New("the document was changed meanwhile")
	// ErrNoVersion says that a version is not, or no longer, kept.
	ErrNoVersion = errors.New("no such version is kept")
	// errMalformed says that what is in Redis is no version of a document at all.
	errMalformed = errors.New("it was not written by goshield config")
)

// Entry is one version of the document.
type Entry struct {
	Version int64     // from 1
	At      time.Time // by Redis's clock
	By      string    // who set it, as they said
	Text    []byte    // the document, JSON
}

// Document reads the entry. Text that was put into Redis by other means than Put may be no valid document.
func (e Entry) Document() (dynamic.Document, error) { return dynamic.Parse(e.Text) }

// Store reads and writes the document. It is safe for concurrent use; the client is its maker's.
type Store struct {
	rdb  redis.UniversalClient
	name string // of the document, and of the channel
	put  *redis.Script
}

// New makes a store over Redis.
func New(rdb redis.UniversalClient) *Store { return newStore(rdb, "goshield:config") }

func newStore(rdb redis.UniversalClient, name string) *Store {
	return &Store{rdb: rdb, name: name, put: redis.NewScript(luaPut)}
}

// history and defaults are in the document's slot: their hash tag is its name.
func (s *Store) history() string  { return "goshield:{" + s.name + "}:history" }
func (s *Store) defaults() string { return "goshield:{" + s.name + "}:defaults" }

// Current is the version in force, or ErrNone.
func (s *Store) Current(ctx context.Context) (Entry, error) {
	fields, err := s.rdb.HMGet(ctx, s.name, "version", "at", "by", "document").Result()
	if redis.HasErrorPrefix(err, wrongType) {
		return Entry{}, fmt.Errorf("%s: %w: it is no hash", s.name, errMalformed)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read %s: %w", s.name, err)
	}
	if fields[0] == nil && fields[3] == nil {
		return Entry{}, ErrNone
	}
	text := func(i int) string { t, _ := fields[i].(string); return t }
	version, err := strconv.ParseInt(text(0), 10, 64)
	if err != nil {
		return Entry{}, fmt.Errorf("%s: %w: its version is no number: %q", s.name, errMalformed, text(0))
	}
	at, _ := strconv.ParseInt(text(1), 10, 64) // 0 where somebody left it out
	return Entry{Version: version, At: time.UnixMicro(at), By: text(2), Text: []byte(text(3))}, nil
}

// stamp tells one state of the document from another, at the price of a few bytes; empty: there is none. It is not the
// version alone: a primary that died may have taken one with it that then is given anew.
func (s *Store) stamp(ctx context.Context) (string, error) {
	fields, err := s.rdb.HMGet(ctx, s.name, "version", "at").Result()
	if redis.HasErrorPrefix(err, wrongType) {
		return wrongType, nil // Current says what is wrong
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", s.name, err)
	}
	if fields[0] == nil && fields[1] == nil {
		return "", nil
	}
	return fmt.Sprint(fields...), nil
}

// Put replaces version expected (0: none) by a valid document, keeps it in the history, and announces it: one step, or
// none of it. ErrConflict tells that the version is another one; a *config.Error that the document is not valid.
func (s *Store) Put(ctx context.Context, doc dynamic.Document, expected int64, by string) (Entry, error) {
	if err := doc.Validate(); err != nil {
		return Entry{}, err
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return Entry{}, fmt.Errorf("write the document: %w", err)
	}
	answer, err := s.put.Run(ctx, s.rdb, []string{s.name, s.history()}, expected, text, by, Keep, s.name).Slice()
	if err != nil {
		return Entry{}, fmt.Errorf("write %s: %w", s.name, err)
	}
	version, _ := answer[1].(int64)
	if answer[0] != int64(1) {
		return Entry{}, fmt.Errorf("%w: it has version %d, not %d", ErrConflict, version, expected)
	}
	micros, _ := answer[2].(string)
	at, err := strconv.ParseInt(micros, 10, 64)
	if err != nil {
		return Entry{}, fmt.Errorf("write %s: redis answered the time %q", s.name, micros)
	}
	return Entry{Version: version, At: time.UnixMicro(at), By: by, Text: text}, nil
}

// History is the versions that are kept, the latest first.
func (s *Store) History(ctx context.Context) ([]Entry, error) {
	texts, err := s.rdb.LRange(ctx, s.history(), 0, Keep-1).Result()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.history(), err)
	}
	entries := make([]Entry, len(texts))
	for i, text := range texts {
		var e struct {
			Version  int64           `json:"version"`
			At       int64           `json:"at"`
			By       string          `json:"by"`
			Document json.RawMessage `json:"document"`
		}
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return nil, fmt.Errorf("%s: entry %d: %w", s.history(), i, err)
		}
		entries[i] = Entry{Version: e.Version, At: time.UnixMicro(e.At), By: e.By, Text: e.Document}
	}
	return entries, nil
}

// Version is a version that is kept, or ErrNoVersion.
func (s *Store) Version(ctx context.Context, version int64) (Entry, error) {
	entries, err := s.History(ctx)
	if err != nil {
		return Entry{}, err
	}
	for _, e := range entries {
		if e.Version == version {
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("%w: %d", ErrNoVersion, version)
}

// Defaults are what gateways go by while there is no document, as one of them told lately; ErrNone if none did.
func (s *Store) Defaults(ctx context.Context) (dynamic.Document, error) {
	text, err := s.rdb.Get(ctx, s.defaults()).Bytes()
	if errors.Is(err, redis.Nil) {
		return dynamic.Document{}, ErrNone
	}
	if err != nil {
		return dynamic.Document{}, fmt.Errorf("read %s: %w", s.defaults(), err)
	}
	return dynamic.Parse(text)
}

// shareDefaults tells Defaults what this gateway goes by.
func (s *Store) shareDefaults(ctx context.Context, text []byte) error {
	return s.rdb.Set(ctx, s.defaults(), text, shared).Err()
}
