package stacktest

// Everything that must never be seen, as it comes about; and what was said by containers that are there no more.

import (
	"context"
	"encoding/hex"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// ledger is every secret that a device of the suite ever had: tokens that were replaced since, too.
type ledger struct {
	mu      sync.Mutex
	secrets map[string]string // whose, by value
}

func newLedger() *ledger { return &ledger{secrets: map[string]string{}} }

func (l *ledger) add(value, whose string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secrets[value] = whose
}

func (l *ledger) addKey(id wire.ClientID, key [32]byte) {
	l.add(hex.EncodeToString(key[:]), "the key of "+id.String())
}

func (l *ledger) addTokens(id wire.ClientID, tokens client.Tokens) {
	for _, token := range []wire.Token{tokens.Current, tokens.Previous} {
		if !token.IsZero() {
			l.add(token.Text(), "a token of "+id.String())
		}
	}
}

// all are the secrets so far.
func (l *ledger) all() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.secrets)
}

// notingStore is a store whose tokens go into a ledger.
type notingStore struct {
	client.TokenStore
	ledger *ledger
}

func (s notingStore) Save(id wire.ClientID, tokens client.Tokens) error {
	s.ledger.addTokens(id, tokens)
	return s.TokenStore.Save(id, tokens)
}

// gone is what was said by containers that have been removed, by their names; and by those that ran a single command.
var gone transcript

type transcript struct {
	mu   sync.Mutex
	said map[string]string
}

func (tr *transcript) add(who, what string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.said == nil {
		tr.said = map[string]string{}
	}
	tr.said[who] += what
}

// all is what was said so far.
func (tr *transcript) all() map[string]string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return maps.Clone(tr.said)
}

// listen follows the logs of containers, running or not, while remove runs, and keeps those of containers that are there no
// more afterwards: what they say at their end is gone with them.
func listen(t *testing.T, names []string, remove func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said := make([]strings.Builder, len(names))
	ended := make([]chan struct{}, len(names))
	for i, name := range names {
		cmd := exec.CommandContext(ctx, "docker", "logs", "--follow", name)
		cmd.Stdout, cmd.Stderr = &said[i], &said[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended[i] = make(chan struct{})
		go func() { // ends with its container, or with ctx
			defer close(ended[i])
			_ = cmd.Wait()
		}()
	}
	remove()
	left := strings.Fields(docker(t, "ps", "-a", "--filter", "label=com.docker.compose.project="+project, "--format", "{{.Names}}"))
	for i, name := range names {
		if slices.Contains(left, name) { // it can be asked any time
			continue
		}
		select {
		case <-ended[i]:
		case <-time.After(patience):
			t.Errorf("%s was removed, and its log has no end", name)
			continue
		}
		if said[i].Len() == 0 && strings.Contains(name, "-gateway-") {
			t.Errorf("%s was removed, and nothing is known of what it said", name)
		}
		gone.add(name, said[i].String())
	}
	cancel()
	for _, end := range ended {
		<-end
	}
}

// everyContainer are the names of a service's containers, those that have ended included.
func everyContainer(t *testing.T, service string) []string {
	t.Helper()
	return strings.Fields(docker(t, "ps", "-a", "--filter", "label=com.docker.compose.project="+project,
		"--filter", "label=com.docker.compose.service="+service, "--format", "{{.Names}}"))
}
