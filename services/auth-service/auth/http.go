package auth

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/device"
	"github.com/goshield/goshield/services/auth-service/token"
)

// retryAfter is what callers are told while Redis cannot be asked or too many ask.
const retryAfter = time.Second

// answer is the body of a success. A nil body is none.
type answer struct {
	status int
	body   any
}

// request is a call whose body has been read. Head and body are valid until the answer is written.
type request struct {
	head     *fasthttp.RequestHeader
	body     []byte
	clientID string // of the path
	cursor   string // of the query
}

// endpoint does what a call asks for. It fills the audit entry; its error becomes a problem by
// problemOf. ctx ends with the request's budget.
type endpoint func(s *Server, ctx context.Context, r request, e *entry) (answer, error)

// call bounds, authenticates, answers and audits.
func (s *Server) call(ctx *fasthttp.RequestCtx, to *route, clientID string) {
	head := &ctx.Request.Header
	e := &entry{operation: to.op, requestID: requestID(head), start: time.Now(), gateway: named(head, authapi.HeaderNode)}
	ctx.Response.Header.Set(authapi.HeaderRequestID, e.requestID)
	r := request{head: head, body: ctx.Request.Body(), clientID: clientID, cursor: string(ctx.QueryArgs().Peek("cursor"))}
	a, err := s.admitted(r, to, e)
	if err != nil {
		p := problemOf(err)
		s.audit.write(e, err, p)
		writeProblem(ctx, p)
		return
	}
	if e.operation != opRelease || e.batch.sessions > 0 { // releasing nothing is how gateways ping
		s.audit.write(e, nil, authapi.Problem{})
	}
	writeJSON(ctx, a)
}

// admitted calls the endpoint when its turn has come, if the caller is who it must be. The whole request has been
// read before: who sends it slowly takes nobody's turn.
func (s *Server) admitted(r request, to *route, e *entry) (answer, error) {
	if err := s.authenticate(r.head, to.who); err != nil {
		return answer{}, err
	}
	if len(r.body) > authapi.MaxBody {
		return answer{}, errBodyTooLarge
	}
	if !s.gate.enter(s.budget) {
		return answer{}, &apiError{status: http.StatusServiceUnavailable, code: wire.CodeAuthUnavailable, detail: "too many requests at once"}
	}
	defer s.gate.leave()
	ctx, cancel := context.WithTimeout(context.Background(), s.budget)
	defer cancel()
	return to.do(s, ctx, r, e)
}

func (s *Server) authenticate(head *fasthttp.RequestHeader, who caller) error {
	bearer := string(head.Peek("Authorization"))
	isAdmin := s.adminSecret != nil && s.adminSecret.MatchesBearer(bearer)
	isGateway := s.gatewaySecret.MatchesBearer(bearer)
	switch {
	case isAdmin, isGateway && who == gateways:
		return nil
	case isGateway:
		return &apiError{status: http.StatusForbidden, code: authapi.CodeForbidden, detail: "an administrator's secret is needed"}
	}
	return &apiError{status: http.StatusUnauthorized, code: authapi.CodeUnauthorized, detail: "no valid secret"}
}

// named is a header's value if it is a name, and so may stand in logs; else "".
func named(head *fasthttp.RequestHeader, header string) string {
	v := head.Peek(header)
	if len(v) > 64 {
		return ""
	}
	for _, c := range v {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return ""
		}
	}
	return string(v)
}

func requestID(head *fasthttp.RequestHeader) string {
	if id := named(head, authapi.HeaderRequestID); id != "" {
		return id
	}
	return rand.Text()
}

// apiError is an error that says itself how to answer it. detail must hold nothing secret.
type apiError struct {
	status     int
	code       wire.Code
	detail     string
	retryAfter time.Duration
}

// Error implements error.
func (e *apiError) Error() string { return string(e.code) + ": " + e.detail }

func badRequest(format string, args ...any) error {
	return &apiError{status: http.StatusBadRequest, code: authapi.CodeBadRequest, detail: fmt.Sprintf(format, args...)}
}

// problemOf is the one place where errors become statuses. What it does not know is Redis
// being away, of which the caller learns no detail.
func problemOf(err error) authapi.Problem {
	var api *apiError
	var refused *token.Refusal
	switch {
	case errors.As(err, &api):
		p := newProblem(api.status, api.code, api.detail)
		if api.retryAfter > 0 {
			p.RetryAfterMS = api.retryAfter.Milliseconds()
		}
		return p
	case errors.As(err, &refused):
		status := http.StatusUnauthorized
		switch refused.Code {
		case authapi.CodeNotCurrent:
			status = http.StatusConflict
		case wire.CodeUnknownClient:
			status = http.StatusForbidden
		case wire.CodeRateLimited:
			p := newProblem(http.StatusTooManyRequests, refused.Code, "the device goes from one connection to another too often")
			p.RetryAfterMS = refused.RetryAfter.Milliseconds()
			return p
		}
		return newProblem(status, refused.Code, "")
	case errors.Is(err, token.ErrNoRecord):
		return newProblem(http.StatusNotFound, authapi.CodeNotFound, "the device has no token record")
	case errors.Is(err, device.ErrCursor):
		return newProblem(http.StatusBadRequest, authapi.CodeBadRequest, err.Error())
	case errors.Is(err, token.ErrUnconfirmed):
		return newProblem(http.StatusServiceUnavailable, wire.CodeAuthUnavailable, "no replica has it yet")
	}
	return newProblem(http.StatusServiceUnavailable, wire.CodeAuthUnavailable, "redis cannot be asked")
}

func newProblem(status int, code wire.Code, detail string) authapi.Problem {
	p := authapi.Problem{Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
	if status == http.StatusServiceUnavailable {
		p.RetryAfterMS = retryAfter.Milliseconds()
	}
	return p
}

func writeProblem(ctx *fasthttp.RequestCtx, p authapi.Problem) {
	head := &ctx.Response.Header
	if p.RetryAfterMS > 0 {
		head.Set("Retry-After", strconv.FormatInt((p.RetryAfterMS+999)/1000, 10))
	}
	if p.Code == authapi.CodeUnauthorized {
		head.Set("WWW-Authenticate", `Bearer realm="auth-service"`)
	}
	head.SetContentType(authapi.ProblemType)
	head.SetStatusCode(p.Status)
	_ = json.NewEncoder(ctx).Encode(p) // into memory
}

func writeJSON(ctx *fasthttp.RequestCtx, a answer) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.SetStatusCode(a.status)
	if a.body == nil {
		return
	}
	ctx.SetContentType(typeJSON)
	_ = json.NewEncoder(ctx).Encode(a.body) // into memory
}

var errBodyTooLarge = &apiError{status: http.StatusRequestEntityTooLarge, code: authapi.CodeBodyTooLarge,
	detail: fmt.Sprintf("the body must not be longer than %d bytes", authapi.MaxBody)}

const typeJSON = "application/json"

// decode reads the body into to: JSON, and nothing behind it. Fields that to does not have are
// ignored.
func decode(r request, to any) error {
	if given := string(r.head.ContentType()); given != typeJSON {
		if kind, _, err := mime.ParseMediaType(given); err != nil || kind != typeJSON {
			return &apiError{status: http.StatusUnsupportedMediaType, code: authapi.CodeBadRequest, detail: "the body must be application/json"}
		}
	}
	if err := json.Unmarshal(r.body, to); err != nil {
		return badRequest("the body does not parse: %s", parseFault(err))
	}
	return nil
}

// parseFault says what is wrong with a body without quoting it: it may hold a token.
func parseFault(err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Sprintf("not JSON at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Sprintf("%s must not be a JSON %s", kind.Field, kind.Value)
	}
	return "a value has not the form it must have"
}

// pathClientID reads {client_id} of the path.
func pathClientID(r request, e *entry) (wire.ClientID, error) {
	id, err := wire.ParseClientID(r.clientID)
	if err != nil {
		return id, badRequest("%v", err)
	}
	e.clientID = id
	return id, nil
}
