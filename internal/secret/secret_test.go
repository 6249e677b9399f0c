package secret

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	oldValue = "old-secret-0123456789"
	newValue = "new-secret-0123456789"
)

func write(t *testing.T, path, text string, at time.Time) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// expire makes the next use look at the file again.
func (s *Secret) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked = time.Time{}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gateway.secret")
	start := time.Now().Add(-time.Hour)
	write(t, path, oldValue+"\n", start)
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		file           string
		first          string
		oldOK, newOK   bool
		whatHappenedIs string
	}{
		{oldValue, oldValue, true, false, "only the old one"},
		{newValue + "\n" + oldValue, newValue, true, true, "both, the new one presented"},
		{newValue, newValue, false, true, "only the new one"},
		{"short", newValue, false, true, "a broken file changes nothing"},
		{"", newValue, false, true, "nor an empty one"},
	} {
		write(t, path, step.file, start.Add(time.Duration(i)*time.Minute))
		s.expire()
		if got := s.First(); got != step.first {
			t.Errorf("%s: First differs", step.whatHappenedIs)
		}
		if v := s.Values(); v[0] != step.first || (len(v) == 2) != (step.oldOK && step.newOK) {
			t.Errorf("%s: Values has %d, or another first", step.whatHappenedIs, len(v))
		}
		if s.Matches(oldValue) != step.oldOK || s.Matches(newValue) != step.newOK {
			t.Errorf("%s: old %v new %v, want %v %v", step.whatHappenedIs, s.Matches(oldValue), s.Matches(newValue), step.oldOK, step.newOK)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.expire()
	if !s.Matches(newValue) {
		t.Error("a missing file must leave the last values in force")
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "three": strings.Repeat(oldValue+"\n", 3), "short": "changeme"} {
		path := filepath.Join(t.TempDir(), "s")
		write(t, path, text, time.Now())
		_, err := Open(path)
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error that names the file", name, err)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), strings.Fields(text)[0]) {
			t.Errorf("%s: the error shows the value", name)
		}
	}
	if _, err := Open("/nonexistent/secret"); err == nil {
		t.Error("missing file: no error")
	}
}

func TestBearer(t *testing.T) {
	s := Static(oldValue)
	for header, want := range map[string]bool{
		"Bearer " + oldValue: true, "bearer " + oldValue: true, oldValue: false, "Bearer ": false,
		"": false, "Basic " + oldValue: false, "Bearer " + oldValue + " ": false,
	} {
		if got := s.MatchesBearer(header); got != want {
			t.Errorf("%q: got %v, want %v", header, got, want)
		}
	}
}

func TestNeverPrints(t *testing.T) {
	s := Static(oldValue)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if got := fmt.Sprintf(format, s); got != "[secret]" {
			t.Errorf("%s: got %q", format, got)
		}
	}
}
