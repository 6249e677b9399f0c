package authclient

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

// TestLaterVersion: answers and problems of an auth-service that says more than this version knows are
// understood for what it knows; a verdict that it does not know lets nobody in.
func TestLaterVersion(t *testing.T) {
	const token = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
	answers := map[string]struct {
		status int
		body   string
	}{
		authapi.PathTokens: {http.StatusCreated, `{"token":"` + token + `","expires_in":5,"epoch":7,"later":{"version":[1]}}`},
		authapi.PathVerify: {http.StatusUnauthorized, `{"title":"t","status":401,"code":"revoked","retry_after_ms":70,"instance":"/later"}`},
		authapi.PathRotate: {http.StatusUnauthorized, `{"title":"t","status":401,"code":"a_later_code"}`},
	}
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		a := answers[r.URL.Path]
		w.WriteHeader(a.status)
		_, _ = w.Write([]byte(a.body))
	})
	c := start(t, Config{URL: srv.URL})
	issued, err := c.Issue(t.Context(), authapi.IssueRequest{ClientID: device})
	if err != nil || issued.Token.Text() != token || issued.ExpiresIn != 5 || issued.Epoch != 7 {
		t.Errorf("issue = %+v, %v, want what it knows", issued, err)
	}
	_, err = c.Verify(t.Context(), authapi.VerifyRequest{ClientID: device})
	var refused *wire.Error
	if !errors.As(err, &refused) || refused.Code != wire.CodeRevoked || refused.RetryAfter != 70*time.Millisecond {
		t.Errorf("verify = %v, want revoked", err)
	}
	if _, err = c.Rotate(t.Context(), authapi.RotateRequest{ClientID: device}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a code of a later version = %v, want unavailable", err)
	}
}
