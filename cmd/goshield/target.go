package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// target is where devices connect and how the gateway is checked: the flags
// that send and bench share.
type target struct {
	getenv func(string) string

	context      string
	addr         string
	ca           string
	serverName   string
	plain        bool
	cert, key    string
	groupKeyFile string
	tokenDir     string
	version      uint8 // 0: not said
}

func (t *target) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&t.addr, "addr", "", "`host:port` where devices connect (default: context.json's)")
	flags.StringVar(&t.ca, "ca", "", "certificate `file` of the gateway's authority (default: context.json's, else the system's)")
	flags.StringVar(&t.serverName, "server-name", "", "`name` that the gateway's certificate must have (default: --addr's host)")
	flags.BoolVar(&t.plain, "plain", false, "plain TCP without TLS, for the demo; tokens travel readable")
	flags.StringVar(&t.cert, "cert", "", "client certificate `file`, where enrolment is mtls")
	flags.StringVar(&t.key, "key", "", "key `file` of --cert")
	flags.StringVar(&t.groupKeyFile, "group-key-file", "", "`file` with the fleet's group key (64 hex digits), where enrolment is key")
	flags.StringVar(&t.context, "context", "", "context `file` written by `goshield up` (default: "+filepath.Join(defaultDataDir, contextFile)+")")
}

func (t *target) addVersionFlag(flags *pflag.FlagSet) {
	flags.Uint8Var(&t.version, "protocol-version", wire.Version1, "`version` of the device protocol: 1, where bodies are JSON, or 2, where they are any bytes")
}

// resolved is a target with everything looked up and read.
type resolved struct {
	addr     string
	tls      *tls.Config // nil: plain
	groupKey []byte      // nil: none
	dataDir  string      // of the context; "" without one
}

// resolve fills what the flags leave open from the context.
func (t *target) resolve() (resolved, error) {
	c, found, err := findContext(t.context, t.getenv)
	if err != nil {
		return resolved{}, err
	}
	if t.version > wire.Version2 {
		return resolved{}, usagef("--protocol-version: must be 1 or 2, got %d", t.version)
	}
	r := resolved{addr: t.addr, dataDir: c.DataDir}
	ca := t.ca
	if r.addr == "" {
		if !found {
			return r, usagef("no --addr, and no %s here: is `goshield up` running in this directory?", filepath.Join(defaultDataDir, contextFile))
		}
		r.addr = c.Addr
		if ca == "" {
			ca = c.CA
		}
	} else if ca == "" && r.addr == c.Addr {
		ca = c.CA
	}
	if _, _, err := net.SplitHostPort(r.addr); err != nil {
		return r, usagef("--addr: %w", err)
	}
	if !t.plain {
		if r.tls, err = t.tlsConfig(ca); err != nil {
			return r, err
		}
	}
	if t.groupKeyFile != "" {
		if r.groupKey, err = readGroupKey(t.groupKeyFile); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (t *target) tlsConfig(ca string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.serverName}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca: %s holds no certificate in PEM", ca)
		}
	}
	if t.cert != "" || t.key != "" {
		pair, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, fmt.Errorf("--cert and --key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func readGroupKey(path string) ([]byte, error) { return readKey("--group-key-file", path) }

// readKey reads the 32 bytes of a key from the file that a flag names.
func readKey(flag, path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("%s: %s must hold 64 hex digits", flag, path)
	}
	return key, nil
}

// deviceKey is the key of one device of the group, nil without a group key.
func (r *resolved) deviceKey(id wire.ClientID) *[32]byte {
	if r.groupKey == nil {
		return nil
	}
	key := wire.DeviceKey(r.groupKey, id)
	return &key
}

// defaultTokenDir is where send keeps tokens: with the context's data, or with
// the user's.
func (r *resolved) defaultTokenDir(getenv func(string) string) (string, error) {
	if r.dataDir != "" {
		return filepath.Join(r.dataDir, "tokens"), nil
	}
	if state := getenv("XDG_STATE_HOME"); state != "" {
		return filepath.Join(state, "goshield", "tokens"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for tokens (--token-dir): %w", err)
	}
	return filepath.Join(home, ".local", "state", "goshield", "tokens"), nil
}

// explainDial adds to an error of connecting what a person can do about it.
func explainDial(err error, r resolved) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var record tls.RecordHeaderError
	var refusal *wire.Error
	hint := ""
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "nothing listens there: is the server running? (goshield up)"
	case errors.As(err, &unknown):
		hint = "name the gateway's authority with --ca; that of `goshield up` is ca.pem in its data directory"
	case errors.As(err, &name):
		hint = "name what the certificate is for with --server-name"
	case errors.As(err, &record), r.tls != nil && closedEarly(err):
		hint = "the other side does not speak TLS: is this the device port? (--plain for the demo's)"
	case errors.As(err, &refusal):
		hint = explainCode(refusal)
	case r.tls == nil && (errors.Is(err, client.ErrProtocol) || closedEarly(err)):
		hint = "the other side is no gateway, or wants TLS (without --plain)"
	case errors.Is(err, context.DeadlineExceeded):
		hint = "no answer in time"
	}
	if hint != "" {
		hint = "\n  " + hint
	}
	return fmt.Errorf("cannot connect to %s: %w%s", r.addr, err, hint)
}

// closedEarly reports whether the other side hung up before it said anything of
// use.
func closedEarly(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

func explainCode(e *wire.Error) string {
	switch e.Code {
	case wire.CodeUnknownClient:
		return "the device is not registered, or blocked"
	case wire.CodeBadProof:
		return "the device's key, or certificate, does not fit: --group-key-file, --key-file, --cert"
	case wire.CodeAuthUnavailable, wire.CodeOverloaded:
		return fmt.Sprintf("try again in %v", max(e.RetryAfter, 0))
	}
	return ""
}
