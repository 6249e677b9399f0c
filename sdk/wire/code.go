package wire

import (
	"fmt"
	"time"
)

// Code names what went wrong, in ERROR frames and in the errors of this SDK.
type Code string

// The codes of the protocol.
const (
	CodeBadFrame      Code = "bad_frame"       // unknown type, unparsable payload, malformed client_id, id in flight twice, frame out of order
	CodeBadVersion    Code = "bad_version"     // a version nobody speaks, or one that changed
	CodeFrameTooLarge Code = "frame_too_large" // announced by the header, never read

	CodeAuthTimeout     Code = "auth_timeout"     // no HELLO, or no PROOF, in time
	CodeAuthRequired    Code = "auth_required"    // a frame before HELLO; a REQUEST or HEARTBEAT without token
	CodeUnknownClient   Code = "unknown_client"   // not registered, or blocked
	CodeBadProof        Code = "bad_proof"        // the proof does not answer the challenge
	CodeBadToken        Code = "bad_token"        // the token is not this device's
	CodeTokenExpired    Code = "token_expired"    // it was, once
	CodeTokenReused     Code = "token_reused"     // it was replaced, and is now replayed
	CodeRevoked         Code = "revoked"          // by an administrator, or by token_reused
	CodeAuthUnavailable Code = "auth_unavailable" // cannot be decided now; carries retry_after_ms

	CodeTakenOver        Code = "taken_over"        // a newer connection of the same client_id
	CodeKicked           Code = "kicked"            // by an administrator
	CodeIdleTimeout      Code = "idle_timeout"      // no frame for too long
	CodeHeartbeatTimeout Code = "heartbeat_timeout" // no HEARTBEAT for too long
	CodeOverloaded       Code = "overloaded"        // before WELCOME only; carries retry_after_ms
	CodeInternal         Code = "internal"          // a fault of the gateway, logged under the id in the message

	CodeRateLimited        Code = "rate_limited"        // carries retry_after_ms
	CodeNoSuchService      Code = "no_such_service"     // no route of that name
	CodeBackendUnavailable Code = "backend_unavailable" // no backend took it, or it died with the request
	CodeBackendTimeout     Code = "backend_timeout"     // no answer within the service's timeout
	CodeBackendError       Code = "backend_error"       // the backend's own failure, or an answer that cannot be carried
	CodeShuttingDown       Code = "shutting_down"       // a request that came after GOAWAY's time
)

// Closes reports whether the gateway closes the connection after an ERROR of
// this code. Rate limiting closes only where guessing is limited; its frame's
// Close field says so.
func (c Code) Closes() bool {
	switch c {
	case CodeRateLimited, CodeNoSuchService, CodeBackendUnavailable, CodeBackendTimeout, CodeBackendError, CodeShuttingDown:
		return false
	}
	return true
}

// Error is the ERROR frame and, since it carries all a caller needs to know,
// also the error type of this package and of the SDK's client.
type Error struct {
	Code       Code
	Message    string        // for a person; never holds a token or a key
	ID         uint32        // the request it answers, if HasID
	HasID      bool          // false: about the connection
	RetryAfter time.Duration // how long to wait before trying again; 0: not said. Whole milliseconds travel
	Close      bool          // the gateway closes after this frame
}

// Errorf makes an Error whose Close follows its code.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Close: code.Closes()}
}

// Error implements error.
func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return string(e.Code) + ": " + e.Message
}

// Is makes errors.Is(err, &Error{Code: c}) compare codes only.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}
