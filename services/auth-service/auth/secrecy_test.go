package auth_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/auth"
)

// forms are the ways a secret could show itself.
func forms(secret []byte) []string {
	sum := sha256.Sum256(secret)
	var all []string
	for _, b := range [][]byte{secret, sum[:]} {
		all = append(all, string(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)),
			base64.RawStdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b))
	}
	return all
}

// errorBodies keeps what the server says in errors.
type errorBodies struct {
	http.RoundTripper
	mu  sync.Mutex
	all bytes.Buffer
}

func (e *errorBodies) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := e.RoundTripper.RoundTrip(r)
	if err != nil || resp.StatusCode < 300 {
		return resp, err
	}
	data, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(data))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all.Write(data)
	for name, values := range resp.Header {
		e.all.WriteString(name + ": " + strings.Join(values, ", ") + "\n")
	}
	return resp, err
}

// TestNothingSecretIsSaid searches logs, metrics, error bodies and Redis for every token, key and
// secret of a run in which everything happens (RELIABILITY row 50).
func TestNothingSecretIsSaid(t *testing.T) {
	groupKey := bytes.Repeat([]byte{0xa7, 0x31}, 16)
	e, rdb := redistest.Embedded(t)
	file := writeFile(t, hex.EncodeToString(groupKey))
	w := start(t, e.Config(), func(c *auth.Config) {
		c.Defaults.Enrolment, c.GroupKeyFile, c.Defaults.Token.Grace = dynamic.EnrolKey, file, 0
	})
	errs := &errorBodies{RoundTripper: w.client.Transport}
	w.client.Transport = errs

	secrets := map[string][]byte{"gateway secret": []byte(gatewaySecret), "admin secret": []byte(adminSecret), "group key": groupKey}
	addToken := func(name string, tok wire.Token) {
		secrets[name] = tok[:]
		secrets[name+" as text"] = []byte(tok.Text())
	}
	id := newID()
	key := wire.DeviceKey(groupKey, id)
	secrets["device key"] = key[:]
	enrolment := proven(id, groupKey)
	enrolment.RemoteIP = "192.0.2.1"
	secrets["proof"] = enrolment.Proof

	var issued authapi.IssueAnswer
	w.ok(201, "POST", authapi.PathTokens, gatewaySecret, enrolment, &issued)
	addToken("issued", issued.Token)
	var next authapi.RotateAnswer
	w.ok(200, "POST", authapi.PathRotate, gatewaySecret, authapi.RotateRequest{ClientID: id, Token: issued.Token, Owner: "n/1"}, &next)
	addToken("next", next.Token)
	guessed := wire.Token{0xde, 0xad, 0xbe, 0xef, 4: 9, 5: 8, 6: 0x47, 8: 0x81, 15: 5}
	addToken("guessed", guessed)
	for range 12 {
		w.send("POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: guessed, RemoteIP: "203.0.113.1"})
	}
	w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: next.Token}, nil)
	w.send("POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token}) // replay
	wrong := enrolment
	wrong.Nonce = bytes.Repeat([]byte{3}, 32)
	w.send("POST", authapi.PathTokens, gatewaySecret, wrong)
	for _, body := range []string{ // that do not parse, around a token
		`{"client_id":"` + next.Token.Text() + `"}`, `{"token":"` + next.Token.Text() + `x"}`, `"` + next.Token.Text(),
		`{"client_id":"` + id.String() + `","token":{"` + next.Token.Text() + `":1}}`, `{"owner":"` + next.Token.Text() + `"}`,
		`{"client_id":"` + id.String() + `","owner":"` + next.Token.Text() + `"}`,
	} {
		for _, path := range []string{authapi.PathTokens, authapi.PathVerify, authapi.PathRotate, authapi.PathRelease} {
			w.send("POST", path, gatewaySecret, strings.NewReader(body))
		}
	}
	w.send("GET", authapi.PathClients+next.Token.Text(), adminSecret, nil)
	w.send("GET", authapi.PathDevices+"?cursor="+next.Token.Text(), adminSecret, nil)
	w.send("GET", "/"+next.Token.Text(), adminSecret, nil)
	w.send("GET", authapi.PathDevices, next.Token.Text(), nil) // a token for a secret
	w.ok(200, "GET", authapi.PathClients+id.String(), adminSecret, nil, nil)
	stored := dump(t, rdb)
	e.Stop()
	for _, r := range routes(id) {
		w.send(r.method, r.path, adminSecret, r.body)
	}
	w.send("POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: next.Token})

	metrics := httptest.NewRecorder()
	promhttp.HandlerFor(w.metrics, promhttp.HandlerOpts{}).ServeHTTP(metrics, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	_, ready := w.srv.Health().Ready()
	said := map[string]string{
		"logs": w.log.String(), "metrics": metrics.Body.String(), "error bodies": errs.all.String(), "readiness": ready,
	}
	for where, text := range said {
		if where != "readiness" && len(text) < 500 {
			t.Errorf("%s: only %d bytes: nothing was recorded", where, len(text))
		}
		for name, secret := range secrets {
			for _, form := range forms(secret) {
				if strings.Contains(text, form) {
					t.Errorf("%s show the %s", where, name)
				}
			}
		}
	}
	for name, secret := range secrets { // Redis holds hashes, but nothing else
		for _, form := range forms(secret)[:5] {
			if strings.Contains(stored, form) {
				t.Errorf("redis holds the %s", name)
			}
		}
	}
}
