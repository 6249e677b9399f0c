package auth_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
)

func mode(m dynamic.Enrolment) func(*auth.Config) {
	return func(c *auth.Config) { c.Defaults.Enrolment = m }
}

func TestOpen(t *testing.T) {
	w := embedded(t, mode(dynamic.EnrolOpen))
	w.enrol(newID())
	if got := w.counter("goshield_auth_enrolment_open"); got != 1 {
		t.Errorf("goshield_auth_enrolment_open = %v, want 1", got)
	}
	if !strings.Contains(w.log.String(), "enrolment is open") {
		t.Error("no warning that enrolment is open")
	}
}

func TestAllowlist(t *testing.T) {
	each(t, mode(dynamic.EnrolAllowlist), func(t *testing.T, w *world) {
		id := newID()
		device := authapi.PathDevices + "/" + id.String()
		enrolment := authapi.IssueRequest{ClientID: id, Owner: "n/1"}
		w.refused(403, wire.CodeUnknownClient, "POST", authapi.PathTokens, gatewaySecret, enrolment)
		var st authapi.DeviceState
		w.ok(200, "PUT", device, adminSecret, nil, &st)
		if st != (authapi.DeviceState{ClientID: id}) {
			t.Errorf("registered %+v, want not blocked", st)
		}
		issued := w.enrol(id) // at once
		verify := authapi.VerifyRequest{ClientID: id, Token: issued.Token}

		w.ok(200, "PUT", device, adminSecret, strings.NewReader(`{"blocked":true}`), &st)
		if !st.Blocked {
			t.Error("blocked, and the answer says it is not")
		}
		w.refused(401, wire.CodeRevoked, "POST", authapi.PathVerify, gatewaySecret, verify)
		w.refused(403, wire.CodeUnknownClient, "POST", authapi.PathTokens, gatewaySecret, enrolment)
		w.ok(200, "PUT", device, adminSecret, strings.NewReader(`{}`), &st)
		if !st.Blocked {
			t.Error("registered again without a word of blocking: unblocked")
		}
		w.ok(200, "PUT", device, adminSecret, strings.NewReader(`{"blocked":false}`), nil)
		verify.Token = w.enrol(id).Token

		w.ok(204, "DELETE", device, adminSecret, nil, nil)
		w.refused(401, wire.CodeRevoked, "POST", authapi.PathVerify, gatewaySecret, verify)
		w.refused(403, wire.CodeUnknownClient, "POST", authapi.PathTokens, gatewaySecret, enrolment)
		w.ok(204, "DELETE", device, adminSecret, nil, nil)
		if got := w.counter("goshield_auth_enrolment_open"); got != 0 {
			t.Errorf("goshield_auth_enrolment_open = %v, want 0", got)
		}
	})
}

// TestBlockedInEveryMode: whatever a blocked device proves, it stays out.
func TestBlockedInEveryMode(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	file := writeFile(t, hex.EncodeToString(key))
	for _, m := range []dynamic.Enrolment{dynamic.EnrolOpen, dynamic.EnrolAllowlist, dynamic.EnrolKey, dynamic.EnrolMTLS} {
		t.Run(string(m), func(t *testing.T) {
			w := embedded(t, func(c *auth.Config) { c.Defaults.Enrolment, c.GroupKeyFile = m, file })
			id := newID()
			r := proven(id, key)
			r.CertificateClientID = id.String()
			if m == dynamic.EnrolAllowlist {
				w.ok(200, "PUT", authapi.PathDevices+"/"+id.String(), adminSecret, nil, nil)
			}
			w.ok(201, "POST", authapi.PathTokens, gatewaySecret, r, nil)
			w.ok(200, "PUT", authapi.PathDevices+"/"+id.String(), adminSecret, strings.NewReader(`{"blocked":true}`), nil)
			w.refused(403, wire.CodeUnknownClient, "POST", authapi.PathTokens, gatewaySecret, r)
		})
	}
}

// proven is an enrolment with the right proof.
func proven(id wire.ClientID, groupKey []byte) authapi.IssueRequest {
	nonce, binding := [32]byte{1}, [32]byte{2}
	proof := wire.ProofOf(wire.DeviceKey(groupKey, id), nonce, binding, id)
	return authapi.IssueRequest{ClientID: id, Owner: "n/1", Nonce: nonce[:], Binding: binding[:], Proof: proof[:]}
}

func TestKey(t *testing.T) {
	key, second, other := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32), bytes.Repeat([]byte{9}, 32)
	file := writeFile(t, hex.EncodeToString(key)+"\n"+hex.EncodeToString(second))
	w := embedded(t, func(c *auth.Config) { c.Defaults.Enrolment, c.GroupKeyFile = dynamic.EnrolKey, file })
	id := newID()
	flip := func(b []byte) []byte { c := bytes.Clone(b); c[31] ^= 1; return c }
	tests := []struct {
		name   string
		change func(r *authapi.IssueRequest)
		ok     bool
	}{
		{"right", func(*authapi.IssueRequest) {}, true},
		{"by the second key", func(r *authapi.IssueRequest) { *r = proven(id, second) }, true},
		{"by another key", func(r *authapi.IssueRequest) { *r = proven(id, other) }, false},
		{"no proof", func(r *authapi.IssueRequest) { r.Proof = nil }, false},
		{"proof too short", func(r *authapi.IssueRequest) { r.Proof = r.Proof[:31] }, false},
		{"wrong proof", func(r *authapi.IssueRequest) { r.Proof = flip(r.Proof) }, false},
		{"to another nonce", func(r *authapi.IssueRequest) { r.Nonce = flip(r.Nonce) }, false},
		{"no nonce", func(r *authapi.IssueRequest) { r.Nonce = nil }, false},
		{"of another connection", func(r *authapi.IssueRequest) { r.Binding = flip(r.Binding) }, false},
		{"no binding", func(r *authapi.IssueRequest) { r.Binding = nil }, false},
		{"of another device", func(r *authapi.IssueRequest) { p := proven(newID(), key); r.Proof = p.Proof }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := proven(id, key)
			tt.change(&r)
			if tt.ok {
				w.ok(201, "POST", authapi.PathTokens, gatewaySecret, r, nil)
			} else {
				w.refused(401, wire.CodeBadProof, "POST", authapi.PathTokens, gatewaySecret, r)
			}
		})
	}
}

func TestMTLS(t *testing.T) {
	w := embedded(t, mode(dynamic.EnrolMTLS))
	id := newID()
	for name, ok := range map[string]bool{id.String(): true, "": false, newID().String(): false, strings.ToUpper(id.String()): false} {
		r := authapi.IssueRequest{ClientID: id, Owner: "n/1", CertificateClientID: name}
		if ok {
			w.ok(201, "POST", authapi.PathTokens, gatewaySecret, r, nil)
		} else {
			w.refused(401, wire.CodeBadProof, "POST", authapi.PathTokens, gatewaySecret, r)
		}
	}
}

// TestModeChanges: the dynamic document may ask for a mode at any time, even for one that this
// service was given no key for.
func TestModeChanges(t *testing.T) {
	w := embedded(t, nil)
	w.enrol(newID())
	doc := dynamic.Default()
	doc.Enrolment = dynamic.EnrolKey
	w.srv.Apply(doc)
	w.refused(503, wire.CodeAuthUnavailable, "POST", authapi.PathTokens, gatewaySecret, proven(newID(), make([]byte, 32)))
	doc.Enrolment = dynamic.EnrolMTLS
	w.srv.Apply(doc)
	w.refused(401, wire.CodeBadProof, "POST", authapi.PathTokens, gatewaySecret, authapi.IssueRequest{ClientID: newID(), Owner: "n/1"})
}

// TestKeyModeWithoutAKey: a document may ask for proofs that this service cannot check. It enrols nobody, and says which key
// of its configuration is missing, until another document comes.
func TestKeyModeWithoutAKey(t *testing.T) {
	w := embedded(t, nil)
	doc := w.cfg.Defaults
	doc.Enrolment = dynamic.EnrolKey
	w.srv.Apply(doc)
	p := w.refused(503, wire.CodeAuthUnavailable, "POST", authapi.PathTokens, gatewaySecret, authapi.IssueRequest{ClientID: newID(), Owner: "n/1"})
	if !strings.Contains(p.Detail, "group_key_file") {
		t.Errorf("the answer says %q, want group_key_file named", p.Detail)
	}
	ready, text := w.srv.Health().Ready()
	if want := "degraded: group_key: enrolment is key, and group_key_file is not set"; !ready || !strings.Contains(text, want) {
		t.Errorf("readiness %v %q, want ready, and %q", ready, text, want)
	}
	if got := w.counter("goshield_degraded", "group_key"); got != 1 {
		t.Errorf("goshield_degraded = %v, want 1", got)
	}
	if !strings.Contains(w.log.String(), "group_key_file is not set") {
		t.Error("the log does not say it")
	}
	w.srv.Apply(w.cfg.Defaults)
	w.enrol(newID())
	if got := w.counter("goshield_degraded", "group_key"); got != 0 {
		t.Errorf("goshield_degraded = %v afterwards, want 0", got)
	}
}
