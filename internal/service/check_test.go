package service

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/config"
)

// --check-config finds a file that is named and is not there: what New says.
func TestCheckConfigOpensFiles(t *testing.T) {
	stderr, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	p := process(newFake(), time.Second)
	p.New = func(fakeConfig, Deps) (Server, error) {
		return nil, &config.Error{Key: "secret_file", Err: os.ErrNotExist}
	}
	var stdout bytes.Buffer
	code := run(p, []string{"--check-config"}, nil, &stdout, stderr)
	text, err := os.ReadFile(stderr.Name())
	if err != nil {
		t.Fatal(err)
	}
	if code != 2 || stdout.Len() > 0 || !strings.Contains(string(text), "fake: secret_file: file does not exist") {
		t.Errorf("got %d, stdout %q, stderr %q; want 2 and the key", code, stdout.String(), text)
	}
}
