package auth_test

import (
	"testing"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

// TestLifeOfADevice walks through every call once.
func TestLifeOfADevice(t *testing.T) {
	each(t, nil, func(t *testing.T, w *world) {
		id := newID()
		issued := w.enrol(id)
		if issued.Token.IsZero() || issued.Epoch == 0 || issued.PreviousOwner != "" ||
			issued.ExpiresIn != (24*time.Hour).Milliseconds() {
			t.Errorf("issue = %+v, want a token, an epoch, 24h, no previous owner", issued)
		}

		verify := authapi.VerifyRequest{ClientID: id, Token: issued.Token, RemoteIP: "192.0.2.1"}
		var v authapi.VerifyAnswer
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, verify, &v)
		if v.Result != authapi.ResultOK || v.ExpiresAt != issued.ExpiresAt || v.Epoch != issued.Epoch ||
			v.Token != nil || v.GraceMS != 0 || v.ExpiresIn <= 0 || v.ExpiresIn > issued.ExpiresIn {
			t.Errorf("verify = %+v, want ok and what was issued %+v", v, issued)
		}

		verify.Claim = &authapi.Claim{Owner: "m/2", RemoteIP: "192.0.2.2"}
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, verify, &v)
		if v.Result != authapi.ResultOK || v.PreviousOwner != "n/1" || v.Epoch <= issued.Epoch {
			t.Errorf("claim = %+v, want ok, taken from n/1, a later epoch", v)
		}
		epoch := v.Epoch

		rotate := authapi.RotateRequest{ClientID: id, Token: issued.Token, Owner: "n/1"}
		w.refused(409, authapi.CodeNotCurrent, "POST", authapi.PathRotate, gatewaySecret, rotate)
		rotate.Owner = "m/2"
		var r authapi.RotateAnswer
		w.ok(200, "POST", authapi.PathRotate, gatewaySecret, rotate, &r)
		if r.Token.IsZero() || r.Token == issued.Token || r.ExpiresIn != (24*time.Hour).Milliseconds() {
			t.Errorf("rotate: a zero or repeated token, or %d ms", r.ExpiresIn)
		}

		v = authapi.VerifyAnswer{}
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: r.Token}, &v)
		if v.Result != authapi.ResultPromoted || v.GraceMS != 10_000 || v.ExpiresAt != r.ExpiresAt || v.PreviousOwner != "" {
			t.Errorf("verify of the new token = %+v, want promoted, 10 s grace, no previous owner", v)
		}
		v = authapi.VerifyAnswer{}
		w.ok(200, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: issued.Token}, &v)
		if v.Result != authapi.ResultPrevious || v.ExpiresIn <= 0 || v.ExpiresIn > 10_000 || v.ExpiresIn != v.GraceMS || v.Token != nil {
			t.Errorf("verify of the old token = %+v, want previous, for the rest of 10 s", v)
		}
		w.refused(409, authapi.CodeNotCurrent, "POST", authapi.PathRotate, gatewaySecret, rotate)

		var st authapi.ClientState
		w.ok(200, "GET", authapi.PathClients+id.String(), adminSecret, nil, &st)
		if st.ClientID != id || st.Generation != 2 || st.Owner != "m/2" || st.Epoch != epoch || st.Revoked ||
			st.ExpiresAt != r.ExpiresAt || st.LastRotated == 0 {
			t.Errorf("state = %+v, want generation 2 of m/2", st)
		}

		var released authapi.ReleaseAnswer
		releases := []authapi.Release{{ClientID: id, Epoch: issued.Epoch}, {ClientID: newID(), Epoch: 1}}
		w.ok(200, "POST", authapi.PathRelease, gatewaySecret, releases, &released)
		if released.Released != 0 {
			t.Errorf("release of an older epoch: %d released, want 0", released.Released)
		}
		releases[0].Epoch = epoch
		w.ok(200, "POST", authapi.PathRelease, gatewaySecret, releases, &released)
		if released.Released != 1 {
			t.Errorf("release: %d released, want 1", released.Released)
		}
		w.ok(200, "POST", authapi.PathRelease, gatewaySecret, []authapi.Release{}, &released)

		w.ok(204, "DELETE", authapi.PathClients+id.String()+"/token", adminSecret, nil, nil)
		w.refused(401, wire.CodeRevoked, "POST", authapi.PathVerify, gatewaySecret, authapi.VerifyRequest{ClientID: id, Token: r.Token})
		w.refused(401, wire.CodeRevoked, "POST", authapi.PathRotate, gatewaySecret, authapi.RotateRequest{ClientID: id, Token: r.Token, Owner: "m/2"})
		w.ok(200, "GET", authapi.PathClients+id.String(), adminSecret, nil, &st)
		if !st.Revoked {
			t.Error("state after the revocation: not revoked")
		}
		stranger := newID().String()
		w.refused(404, authapi.CodeNotFound, "GET", authapi.PathClients+stranger, adminSecret, nil)
		w.refused(404, authapi.CodeNotFound, "DELETE", authapi.PathClients+stranger+"/token", adminSecret, nil)

		again := w.enrol(id)
		if again.Token == issued.Token || again.Epoch <= epoch {
			t.Errorf("enrolment after the revocation: the old token, or an epoch %d that is not after %d", again.Epoch, epoch)
		}
	})
}
