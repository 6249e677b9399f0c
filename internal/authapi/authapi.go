// Package authapi is what gateways and auth-service say to each other over
// HTTP (docs/PROTOCOL.md §2): bodies, answers, errors. Both sides ignore
// fields they do not know, so that versions N and N±1 work together.
package authapi

import (
	"github.com/goshield/goshield/sdk/wire"
)

// The paths of the API. {client_id} is 64 lower-case hex digits.
const (
	PathTokens  = "/v1/tokens"           // POST IssueRequest → 201 IssueAnswer
	PathVerify  = "/v1/tokens/verify"    // POST VerifyRequest → 200 VerifyAnswer, 401 Problem
	PathRotate  = "/v1/tokens/rotate"    // POST RotateRequest → 200 RotateAnswer, 401, 409 Problem
	PathRelease = "/v1/sessions/release" // POST []Release → 200 ReleaseAnswer
	PathClients = "/v1/clients/"         // + {client_id}: GET ClientState; + {client_id}/token: DELETE → 204
	PathDevices = "/v1/devices"          // GET ?cursor=; + /{client_id}: PUT DeviceChange → 200 DeviceState, DELETE → 204
)

// MaxBody is the longest body, in bytes, that auth-service reads.
const MaxBody = 8 << 10

// Codes that travel in problems only, never to a device.
const (
	CodeNotCurrent       wire.Code = "not_current"        // 409: a rotation of another than the current token, or by another than the owner
	CodeBadRequest       wire.Code = "bad_request"        // 400, 415: the caller's fault; Detail says what
	CodeBodyTooLarge     wire.Code = "body_too_large"     // 413: over MaxBody
	CodeUnauthorized     wire.Code = "unauthorized"       // 401: without a valid secret
	CodeForbidden        wire.Code = "forbidden"          // 403: with a gateway's secret, where an administrator's is needed
	CodeNotFound         wire.Code = "not_found"          // 404: no such path, or no token record
	CodeMethodNotAllowed wire.Code = "method_not_allowed" // 405
)

// Headers of a request, both optional: 1 to 64 letters, digits, '.', '_' and '-'.
const (
	HeaderRequestID = "Goshield-Request-Id" // stands in the audit line, and in the answer; without one the server makes it
	HeaderNode      = "Goshield-Node"       // the gateway, for calls that name no owner
)

// IssueRequest enrols a device. Owner is "node/session".
type IssueRequest struct {
	ClientID wire.ClientID `json:"client_id"`
	Owner    string        `json:"owner"`
	RemoteIP string        `json:"remote_ip"`
	// What the device proved, by the enrolment mode: the answer to a challenge (base64), or the
	// identity in its certificate.
	Proof               []byte `json:"proof,omitempty"`
	Nonce               []byte `json:"nonce,omitempty"`
	Binding             []byte `json:"binding,omitempty"`
	CertificateClientID string `json:"certificate_client_id,omitempty"`
}

// IssueAnswer is the new token. PreviousOwner is the owner it replaced, if that
// was another: the gateway that asked has to tell it (takeover).
type IssueAnswer struct {
	Token         wire.Token `json:"token"`
	ExpiresAt     int64      `json:"expires_at"` // Unix ms
	ExpiresIn     int64      `json:"expires_in"` // ms from now, so that the gateway's clock does not matter
	Epoch         int64      `json:"epoch"`
	PreviousOwner string     `json:"previous_owner,omitempty"`
}

// Claim makes the caller the device's owner. It comes with a HELLO only.
type Claim struct {
	Owner    string `json:"owner"`
	RemoteIP string `json:"remote_ip"`
}

// VerifyRequest asks whether a token is good.
type VerifyRequest struct {
	ClientID wire.ClientID `json:"client_id"`
	Token    wire.Token    `json:"token"`
	Claim    *Claim        `json:"claim,omitempty"`
	RemoteIP string        `json:"remote_ip,omitempty"` // without a claim: for limits and the audit line
}

// Result says which of a device's tokens was presented.
type Result string

// The results of a verify that succeeds.
const (
	ResultOK       Result = "ok"       // the current one
	ResultPromoted Result = "promoted" // the next one, which thereby became the current one
	ResultPrevious Result = "previous" // the one before, within its grace
)

// VerifyAnswer is the verdict on a good token. With a claim and ResultPrevious, Token is a fresh
// current one, which the device has to be told.
type VerifyAnswer struct {
	Result        Result      `json:"result"`
	ExpiresAt     int64       `json:"expires_at"` // Unix ms, of the current token (of Token, if there)
	ExpiresIn     int64       `json:"expires_in"` // ms from now; for ResultPrevious without a claim: of the grace
	Epoch         int64       `json:"epoch"`
	Token         *wire.Token `json:"token,omitempty"`
	GraceMS       int64       `json:"grace_ms,omitempty"` // how long the replaced token goes on; 0: it does not
	PreviousOwner string      `json:"previous_owner,omitempty"`
}

// RotateRequest asks for a successor of the current token.
type RotateRequest struct {
	ClientID wire.ClientID `json:"client_id"`
	Token    wire.Token    `json:"token"`
	Owner    string        `json:"owner"`
}

// RotateAnswer is the successor, not in force until the device uses it.
type RotateAnswer struct {
	Token     wire.Token `json:"token"`
	ExpiresAt int64      `json:"expires_at"` // Unix ms
	ExpiresIn int64      `json:"expires_in"` // ms from now
}

// Release gives a session up, unless a newer one (a higher epoch) has it.
type Release struct {
	ClientID wire.ClientID `json:"client_id"`
	Epoch    int64         `json:"epoch"`
}

// ReleaseAnswer counts the sessions that were released.
type ReleaseAnswer struct {
	Released int `json:"released"`
}

// ClientState is what an administrator may see of a device's token record.
type ClientState struct {
	ClientID    wire.ClientID `json:"client_id"`
	Generation  int64         `json:"gen"`
	ExpiresAt   int64         `json:"expires_at"` // Unix ms
	Owner       string        `json:"owner,omitempty"`
	Epoch       int64         `json:"epoch"`
	LastRotated int64         `json:"last_rotation,omitempty"` // Unix ms
	Revoked     bool          `json:"revoked"`
}

// DeviceChange registers a device. Blocked nil leaves a registered device as it is, and a
// new one unblocked.
type DeviceChange struct {
	Blocked *bool `json:"blocked,omitempty"`
}

// DeviceState is a registered device.
type DeviceState struct {
	ClientID wire.ClientID `json:"client_id"`
	Blocked  bool          `json:"blocked"`
}

// DeviceList is a page of registered devices; Cursor is empty on the last.
type DeviceList struct {
	Devices []DeviceState `json:"devices"`
	Cursor  string        `json:"cursor,omitempty"`
}

// ProblemType is the media type of every error body (RFC 9457).
const ProblemType = "application/problem+json"

// Problem is an error body (RFC 9457). Code is a code of the device protocol where one fits;
// a gateway hands it on.
type Problem struct {
	Title        string    `json:"title"`
	Status       int       `json:"status"`
	Detail       string    `json:"detail,omitempty"`
	Code         wire.Code `json:"code"`
	RetryAfterMS int64     `json:"retry_after_ms,omitempty"`
}
