package client_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

func TestStores(t *testing.T) {
	files, err := client.FileStore(filepath.Join(t.TempDir(), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]client.TokenStore{"file": files, "memory": client.MemoryStore()} {
		t.Run(name, func(t *testing.T) {
			a, b := testID(t), wire.ClientID{1}
			if got, err := store.Load(a); err != nil || got != (client.Tokens{}) {
				t.Errorf("nothing saved: got %v, %v", got, err)
			}
			want := client.Tokens{Current: newToken(t), Previous: newToken(t), ExpiresAt: time.UnixMilli(1767225600000)}
			if err := store.Save(a, client.Tokens{Current: newToken(t)}); err != nil {
				t.Fatal(err)
			}
			if err := store.Save(a, want); err != nil {
				t.Fatal(err)
			}
			if err := store.Save(b, client.Tokens{Current: newToken(t)}); err != nil {
				t.Fatal(err)
			}
			if got, err := store.Load(a); err != nil || got != want {
				t.Errorf("saved twice: not what was saved last, or %v", err)
			}
			if got, err := store.Load(b); err != nil || got.Current.IsZero() || got.Current == want.Current || !got.Previous.IsZero() {
				t.Errorf("another device: %v, or the wrong tokens", err)
			}
		})
	}
}

func TestFileStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tokens")
	store, err := client.FileStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	token := newToken(t)
	if err := store.Save(testID(t), client.Tokens{Current: token}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, testID(t).String()+".json")
	for name, want := range map[string]os.FileMode{dir: 0o700, path: 0o600} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: got %v, %v, want mode %v", filepath.Base(name), info.Mode(), err, want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files: got %v, %v, want one", entries, err)
	}

	// A store made later, by the next process, finds it.
	again, err := client.FileStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Load(testID(t)); err != nil || got.Current != token {
		t.Errorf("after a restart: not the token that was saved, or %v", err)
	}

	for name, content := range map[string]string{"empty": "", "half": `{"token":"6ba7b810-`, "other": `[]`, "bad token": `{"token":"x"}`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := store.Load(testID(t)); err != nil || got != (client.Tokens{}) {
			t.Errorf("%s file: got %v, %v, want none", name, got, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil { // cannot be read, nor replaced
		t.Fatal(err)
	}
	if _, err := store.Load(testID(t)); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("unreadable: got %v, want an error that names the file", err)
	}
	if err := store.Save(testID(t), client.Tokens{Current: token}); err == nil {
		t.Error("unwritable: no error")
	} else if strings.Contains(err.Error(), token.Text()) {
		t.Error("the error shows the token")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files after a failed Save: got %v, %v, want none left over", entries, err)
	}
	if _, err := client.FileStore(filepath.Join(path, "x\x00y")); err == nil {
		t.Error("a directory that cannot be made: no error")
	}
}
