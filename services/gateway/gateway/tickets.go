package gateway

import (
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/config"
)

// ticketKeysMax is how many keys a file may hold: the one in use, its successor and its predecessor.
const ticketKeysMax = 3

// tickets are the keys of TLS session tickets, shared by all gateways through a file: a device that comes back to another
// gateway, as all do when one has gone, then resumes its TLS session and spares both sides the signature and its
// verification. The first key makes tickets, all of them are accepted. The file is read again when it changes; one that is
// wrong leaves the old keys in force.
type tickets struct {
	log     *zap.Logger
	configs []*tls.Config // that get the keys

	mu   sync.Mutex
	file followedFiles
}

// openTickets reads the file and gives its keys to the configurations, whose handshakes look for new ones.
func openTickets(path string, log *zap.Logger, configs ...*tls.Config) (*tickets, error) {
	t := &tickets{log: log, configs: configs, file: followedFiles{paths: []string{path}}}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return nil, &config.Error{Key: "tls.ticket_keys_file", Err: err}
	}
	for _, c := range configs {
		choose := c.GetConfigForClient
		if choose == nil {
			choose = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil } // go on with this one
		}
		// Called with each ClientHello, before its ticket is looked at. The keys are those of c, whatever is chosen: see trusting.
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			t.refresh()
			return choose(hello)
		}
	}
	return t, nil
}

// refresh looks for new keys.
func (t *tickets) refresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		t.log.Warn("the new TLS ticket keys cannot be used; the old ones stay", zap.Error(err))
	}
}

// load reads the file if it has changed. mu is held.
func (t *tickets) load() error {
	contents, err := t.file.changed()
	if contents == nil {
		return err
	}
	keys, err := parseTicketKeys(string(contents[0]))
	if err != nil {
		return fmt.Errorf("%s: %w", t.file.paths[0], err)
	}
	for _, c := range t.configs {
		c.SetSessionTicketKeys(keys)
	}
	return nil
}

// parseTicketKeys takes a file's text: a key a line, 32 bytes as 64 hex digits. Its errors tell nothing of the keys.
func parseTicketKeys(text string) ([][32]byte, error) {
	lines := strings.Fields(text)
	if len(lines) == 0 || len(lines) > ticketKeysMax {
		return nil, fmt.Errorf("must hold from one to %d keys, a line each, has %d", ticketKeysMax, len(lines))
	}
	keys := make([][32]byte, len(lines))
	for i, line := range lines {
		b, err := hex.DecodeString(line)
		if err != nil || len(b) != len(keys[i]) {
			return nil, errors.New("a key must be 32 bytes, as 64 hex digits")
		}
		keys[i] = [32]byte(b)
	}
	return keys, nil
}
