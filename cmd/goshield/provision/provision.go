// Package provision makes what the parts of a GoShield share and what must be in no repository:
// certificates of a development CA, secrets, passwords of Redis users. Each part has a directory
// of its own with what it needs and nothing else, to be mounted as its volume:
//
//	changes, err := provision.Ensure(provision.Config{Dir: "/var/lib/goshield", Hosts: []string{"10.0.0.5"}})
//
// The originals are in the directory "authority", which no part but the one that runs Ensure needs
// to see. What is there is kept; what was replaced there is handed on. So to bring one's own, put
// it into "authority" and run Ensure again.
package provision

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/goshield/goshield/internal/certs"
)

// Authority is the directory of the originals.
const Authority = "authority"

// Config says where, and for whom certificates are.
type Config struct {
	Dir        string
	Hosts      []string // names and addresses of the gateways, as devices know them
	RedisHosts []string // names and addresses of the Redis nodes
	RedisPort  string   // of all of them
}

// Ensure makes what is missing, renews certificates near their end, and brings each part's directory
// up to date. Files that a part reads are for their owner and group only (mode 0440), and replaced
// at once: a reader sees the old or the new one. It returns the files that it made or replaced, by
// their path under Dir, in order. Run it from one process at a time.
func Ensure(cfg Config) (changes []string, err error) {
	p := &provisioner{cfg: cfg, values: make(map[string][]byte)}
	if err := p.originals(); err != nil {
		return p.changes, err
	}
	for _, part := range parts {
		for _, f := range part.files {
			content, err := f.content(p)
			if err != nil {
				return p.changes, fmt.Errorf("%s/%s: %w", part.name, f.name, err)
			}
			if err := p.hand(filepath.Join(part.name, f.name), content, 0o440); err != nil {
				return p.changes, err
			}
		}
	}
	return p.changes, nil
}

// provisioner is one run of Ensure.
type provisioner struct {
	cfg     Config
	values  map[string][]byte // originals, by their path under Authority
	changes []string
}

// originals makes what is missing in the authority's directory and reads all of it.
func (p *provisioner) originals() error {
	root := filepath.Join(p.cfg.Dir, Authority)
	for _, a := range []struct {
		dir    string
		hosts  []string
		ensure func(dir string, hosts ...string) (certs.Paths, error)
	}{
		{"devices", p.cfg.Hosts, certs.EnsureDir},
		{"redis", p.cfg.RedisHosts, certs.EnsurePeerDir},
	} {
		paths, err := a.ensure(filepath.Join(root, a.dir), a.hosts...)
		if err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
		if paths.NewCA {
			p.changes = append(p.changes, filepath.Join(Authority, a.dir, "ca.pem"))
		}
		if paths.NewServer {
			p.changes = append(p.changes, filepath.Join(Authority, a.dir, "server.pem"))
		}
		for _, name := range []string{"ca.pem", "server.pem", "server-key.pem"} {
			if err := p.read(filepath.Join(a.dir, name)); err != nil {
				return err
			}
		}
	}
	for _, name := range secrets {
		path := filepath.Join(Authority, name)
		if _, err := os.Lstat(filepath.Join(p.cfg.Dir, path)); errors.Is(err, fs.ErrNotExist) {
			if err := p.hand(path, newSecret(name), 0o400); err != nil {
				return err
			}
		}
		if err := p.read(name); err != nil {
			return err
		}
	}
	return nil
}

func (p *provisioner) read(name string) error {
	content, err := os.ReadFile(filepath.Join(p.cfg.Dir, Authority, name))
	if err != nil {
		return err
	}
	p.values[name] = content
	return nil
}

// newSecret is 130 bits in letters and digits; the group key and that of TLS tickets are 256 in hex, as their readers
// want them.
func newSecret(name string) []byte {
	if name != groupKey && name != ticketKeys {
		return []byte(rand.Text() + "\n")
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	return []byte(hex.EncodeToString(key[:]) + "\n")
}

// hand writes a file under Dir unless it has that content already.
func (p *provisioner) hand(path string, content []byte, mode fs.FileMode) error {
	full := filepath.Join(p.cfg.Dir, path)
	if old, err := os.ReadFile(full); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o750); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(full), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), full)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	p.changes = append(p.changes, path)
	return nil
}

// lines are the values in a secret's file: one, or two while it is being replaced.
func (p *provisioner) lines(name string) []string { return strings.Fields(string(p.values[name])) }

// first is the value of a secret that is shown to others.
func (p *provisioner) first(name string) (string, error) {
	values := p.lines(name)
	if len(values) == 0 {
		return "", fmt.Errorf("%s is empty", filepath.Join(Authority, name))
	}
	return values[0], nil
}
