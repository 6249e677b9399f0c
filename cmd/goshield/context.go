package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// defaultDataDir is where `goshield up` keeps its things, and where the other
	// commands look for them.
	defaultDataDir = ".goshield"
	// contextFile is a file of the data directory.
	contextFile = "context.json"
	// contextEnv names another context file, as --context does.
	contextEnv = "GOSHIELD_CONTEXT"
)

// Context says where a running GoShield is to be reached: `up` writes it, the
// other commands take their defaults from it. It holds the names of secret files, never
// secrets.
type Context struct {
	Addr      string   `json:"addr"`            // devices, TLS
	WebSocket string   `json:"websocket"`       // devices, WebSocket over TLS
	MQTT      string   `json:"mqtt"`            // devices, MQTT over TLS
	Admin     string   `json:"admin"`           // metrics, health, admin API
	Push      string   `json:"push"`            // push API
	Auth      string   `json:"auth"`            // auth-service's API
	Redis     []string `json:"redis,omitempty"` // host:port; several are one cluster
	CA        string   `json:"ca"`              // certificate file of the authority that the above are signed by
	DataDir   string   `json:"data_dir"`

	PushSecretFile      string `json:"push_secret_file,omitempty"`
	AdminSecretFile     string `json:"admin_secret_file,omitempty"`
	AuthAdminSecretFile string `json:"auth_admin_secret_file,omitempty"`
}

// LoadContext reads the file at path.
func LoadContext(path string) (Context, error) {
	var c Context
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("context: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("context: %s: %w", path, err)
	}
	return c, nil
}

// Save writes the file at path, at once: a reader sees all of it or none.
func (c Context) Save(path string) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("context: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+contextFile+"-*")
	if err != nil {
		return fmt.Errorf("context: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("context: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// findContext loads the context that was named by flag or environment, or the one that
// `up` left in this directory; found is false, without an error, if there is none there.
func findContext(flag string, getenv func(string) string) (c Context, found bool, err error) {
	path := flag
	if path == "" {
		path = getenv(contextEnv)
	}
	if path != "" {
		c, err = LoadContext(path)
		return c, err == nil, err
	}
	c, err = LoadContext(filepath.Join(defaultDataDir, contextFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Context{}, false, nil
	}
	return c, err == nil, err
}
