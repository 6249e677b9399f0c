package auth

import (
	"crypto/hmac"
	"encoding/hex"
	"errors"
	"net/http"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/wire"
)

// errProof is a proof, or a certificate, that does not prove the client_id.
var errProof error = &apiError{status: http.StatusUnauthorized, code: wire.CodeBadProof}

// errNoGroupKey is what enrolment by key meets where nobody configured a key.
var errNoGroupKey error = &apiError{status: http.StatusServiceUnavailable, code: wire.CodeAuthUnavailable,
	detail: "enrolment is by key, and this service has no group_key_file"}

// prove checks what the mode wants a device to have shown. Registration is checked where the
// record is written.
func (s *Server) prove(mode dynamic.Enrolment, r *authapi.IssueRequest) error {
	switch mode {
	case dynamic.EnrolKey:
		if s.groupKey == nil {
			return errNoGroupKey
		}
		if !s.groupKey.proves(r) {
			return errProof
		}
	case dynamic.EnrolMTLS:
		if r.CertificateClientID != r.ClientID.String() {
			return errProof
		}
	case dynamic.EnrolOpen, dynamic.EnrolAllowlist:
	}
	return nil
}

// groupKey is the key that device keys derive from, or two of them while it is being replaced.
type groupKey struct{ file *secret.Secret }

// openGroupKey reads a file of one or two keys of 32 bytes, a line of 64 hex digits each.
func openGroupKey(path string) (*groupKey, error) {
	file, err := secret.Open(path)
	if err != nil {
		return nil, err
	}
	for _, text := range file.Values() {
		if key, err := hex.DecodeString(text); err != nil || len(key) != 32 {
			return nil, errors.New(path + ": a group key must be 64 hex digits")
		}
	}
	return &groupKey{file: file}, nil
}

// proves reports, in time that does not depend on the proof, whether it is right by any of the
// keys.
func (k *groupKey) proves(r *authapi.IssueRequest) bool {
	if len(r.Nonce) != 32 || len(r.Binding) != 32 || len(r.Proof) != 32 {
		return false
	}
	ok := false
	for _, text := range k.file.Values() {
		key, err := hex.DecodeString(text)
		if err != nil || len(key) != 32 {
			continue // the file has changed, for the worse
		}
		want := wire.ProofOf(wire.DeviceKey(key, r.ClientID), [32]byte(r.Nonce), [32]byte(r.Binding), r.ClientID)
		ok = hmac.Equal(want[:], r.Proof) || ok
	}
	return ok
}
