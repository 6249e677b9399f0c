package stack

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// secretFiles are the files of the secrets that the parts share.
type secretFiles struct {
	Gateway string // gateways to auth-service
	Admin   string // administrators to auth-service, load balancer and gateways
	Backend string // gateways to backends
	Push    string // services, and gateways among each other, to the push API

	GroupKey   string // what device keys are made from, where enrolment is by key
	TicketKeys string // of TLS sessions, so that a device goes on with its own at any gateway
}

// ensureSecrets makes the files that are missing under dir/secrets, readable by the
// owner only.
func ensureSecrets(dir string) (secretFiles, error) {
	dir = filepath.Join(dir, "secrets")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return secretFiles{}, err
	}
	files := secretFiles{
		Gateway: filepath.Join(dir, "gateway"),
		Admin:   filepath.Join(dir, "admin"),
		Backend: filepath.Join(dir, "backend"),
		Push:    filepath.Join(dir, "push"),

		GroupKey:   filepath.Join(dir, "group-key"),
		TicketKeys: filepath.Join(dir, "ticket-keys"),
	}
	values := map[string]string{}
	for _, path := range []string{files.GroupKey, files.TicketKeys} {
		var key [32]byte
		_, _ = rand.Read(key[:]) // never fails
		values[path] = hex.EncodeToString(key[:])
	}
	for _, path := range []string{files.Gateway, files.Admin, files.Backend, files.Push} {
		values[path] = rand.Text() // 128 bits at least
	}
	for path, value := range values {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return secretFiles{}, err
		}
		_, err = f.WriteString(value + "\n")
		if err = errors.Join(err, f.Close()); err != nil {
			return secretFiles{}, err
		}
	}
	return files, nil
}
