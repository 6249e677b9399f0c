package auth

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/device"
	"github.com/goshield/goshield/services/auth-service/token"
)

// retryAfter is what callers are told while Redis cannot be asked or too many ask.
const retryAfter = time.Second

// caller is who may make a call.
type caller int

const (
	gateways       caller = iota // and administrators
	administrators               // only
)

// answer is the body of a success. A nil body is none.
type answer struct {
	status int
	body   any
}

// request is a call whose body has been read.
type request struct {
	*http.Request
	body []byte
}

// endpoint does what a call asks for. It fills the audit entry; its error becomes a problem by
// problemOf. ctx ends with the request's budget.
type endpoint func(ctx context.Context, r request, e *entry) (answer, error)

// handler is the whole API; openapi.yaml describes it.
func (s *Server) handler() *mux.Router {
	r := mux.NewRouter()
	r.HandleFunc(pathOpenAPI, serveOpenAPI).Methods(http.MethodGet)
	r.Handle(authapi.PathTokens, s.call(opIssue, gateways, s.issue)).Methods(http.MethodPost)
	r.Handle(authapi.PathVerify, s.call(opVerify, gateways, s.verify)).Methods(http.MethodPost)
	r.Handle(authapi.PathRotate, s.call(opRotate, gateways, s.rotate)).Methods(http.MethodPost)
	r.Handle(authapi.PathRelease, s.call(opRelease, gateways, s.release)).Methods(http.MethodPost)
	r.Handle(authapi.PathClients+"{client_id}", s.call(opShow, administrators, s.showClient)).Methods(http.MethodGet)
	r.Handle(authapi.PathClients+"{client_id}/token", s.call(opRevoke, administrators, s.revoke)).Methods(http.MethodDelete)
	r.Handle(authapi.PathDevices, s.call(opDeviceList, administrators, s.listDevices)).Methods(http.MethodGet)
	r.Handle(authapi.PathDevices+"/{client_id}", s.call(opDevicePut, administrators, s.putDevice)).Methods(http.MethodPut)
	r.Handle(authapi.PathDevices+"/{client_id}", s.call(opDeviceRemove, administrators, s.removeDevice)).Methods(http.MethodDelete)
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, problemOf(&apiError{status: http.StatusNotFound, code: authapi.CodeNotFound, detail: "no such path"}))
	})
	r.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, problemOf(&apiError{status: http.StatusMethodNotAllowed, code: authapi.CodeMethodNotAllowed, detail: "not with this method"}))
	})
	return r
}

// call makes an endpoint an HTTP handler: it bounds, authenticates, answers and audits.
func (s *Server) call(op operation, who caller, do endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := &entry{operation: op, requestID: requestID(r), start: time.Now(), gateway: named(r, authapi.HeaderNode)}
		w.Header().Set(authapi.HeaderRequestID, e.requestID)
		r.Body = http.MaxBytesReader(w, r.Body, authapi.MaxBody)
		a, err := s.admitted(r, who, do, e)
		if err != nil {
			p := problemOf(err)
			s.audit.write(e, err, p)
			writeProblem(w, p)
			return
		}
		if e.operation != opRelease || e.batch.sessions > 0 { // releasing nothing is how gateways ping
			s.audit.write(e, nil, authapi.Problem{})
		}
		writeJSON(w, a)
	})
}

// admitted calls the endpoint when its turn has come, if the caller is who it must be. The body is
// read before: who sends it slowly takes nobody's turn.
func (s *Server) admitted(r *http.Request, who caller, do endpoint, e *entry) (answer, error) {
	if err := s.authenticate(r, who); err != nil {
		return answer{}, err
	}
	body, err := readBody(r)
	if err != nil {
		return answer{}, err
	}
	if !s.gate.enter(r.Context(), s.budget) {
		return answer{}, &apiError{status: http.StatusServiceUnavailable, code: wire.CodeAuthUnavailable, detail: "too many requests at once"}
	}
	defer s.gate.leave()
	ctx, cancel := context.WithTimeout(r.Context(), s.budget)
	defer cancel()
	return do(ctx, request{r, body}, e)
}

func (s *Server) authenticate(r *http.Request, who caller) error {
	bearer := r.Header.Get("Authorization")
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

var wellNamed = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// named is a header's value if it is a name, and so may stand in logs; else "".
func named(r *http.Request, header string) string {
	if v := r.Header.Get(header); wellNamed.MatchString(v) {
		return v
	}
	return ""
}

func requestID(r *http.Request) string {
	if id := named(r, authapi.HeaderRequestID); id != "" {
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

func writeProblem(w http.ResponseWriter, p authapi.Problem) {
	if p.RetryAfterMS > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt((p.RetryAfterMS+999)/1000, 10))
	}
	if p.Code == authapi.CodeUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="auth-service"`)
	}
	w.Header().Set("Content-Type", authapi.ProblemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a caller that is gone learns nothing
}

func writeJSON(w http.ResponseWriter, a answer) {
	w.Header().Set("Cache-Control", "no-store")
	if a.body == nil {
		w.WriteHeader(a.status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.status)
	_ = json.NewEncoder(w).Encode(a.body) // a caller that is gone learns nothing
}

func readBody(r *http.Request) ([]byte, error) {
	var data []byte
	var err error
	if r.ContentLength >= 0 && r.ContentLength <= authapi.MaxBody {
		data = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, data)
	} else {
		data, err = io.ReadAll(r.Body) // up to MaxBody
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &apiError{status: http.StatusRequestEntityTooLarge, code: authapi.CodeBodyTooLarge,
			detail: fmt.Sprintf("the body must not be longer than %d bytes", authapi.MaxBody)}
	case err != nil:
		return nil, badRequest("the body cannot be read")
	}
	return data, nil
}

// decode reads the body into to: JSON, and nothing behind it. Fields that to does not have are
// ignored.
func decode(r request, to any) error {
	const typeJSON = "application/json"
	if given := r.Header.Get("Content-Type"); given != typeJSON {
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
	id, err := wire.ParseClientID(mux.Vars(r.Request)["client_id"])
	if err != nil {
		return id, badRequest("%v", err)
	}
	e.clientID = id
	return id, nil
}
