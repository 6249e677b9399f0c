package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/secret"
)

const (
	// apiTimeout is for one call; a push may ask to wait longer.
	apiTimeout = 10 * time.Second
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 4 << 20
)

// api is one of the two HTTP APIs that devices are managed by. It is safe for concurrent use.
type api struct {
	name, flag string
	base       *url.URL // nil: nowhere named
	bearer     *secret.Secret
	client     http.Client
}

// newAPI takes address and secret's file from flags, or else from the context.
func newAPI(name, flag, given, known, givenFile, knownFile string) (*api, error) {
	a := &api{name: name, flag: flag, client: http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: workers, IdleConnTimeout: time.Minute},
	}}
	address, file := given, givenFile
	if address == "" {
		address = known
	}
	if file == "" {
		file = knownFile
	}
	if address == "" {
		return a, nil
	}
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	base, err := url.Parse(address)
	if err != nil || base.Host == "" {
		return nil, usagef("%s: %q is no URL such as http://host:8000", flag, address)
	}
	if file == "" {
		return nil, usagef("%s-secret-file is missing: the file with the secret of the %s", flag, name)
	}
	a.base = base
	a.bearer, err = openBearer(flag+"-secret-file", file)
	return a, err
}

// known reports whether there is an address to call.
func (a *api) known() bool { return a.base != nil }

func (a *api) close() { a.client.CloseIdleConnections() }

// apiError is a refusal. Its text has no secret: servers' problems hold none.
type apiError struct{ authapi.Problem }

// Error implements error.
func (e *apiError) Error() string {
	text := e.Title
	if e.Detail != "" {
		text = e.Detail
	}
	if e.Code == "" {
		return text
	}
	return fmt.Sprintf("%s (%s)", text, e.Code)
}

// refusedWith reports whether an error is a refusal with this status.
func refusedWith(err error, status int) bool {
	var refused *apiError
	return errors.As(err, &refused) && refused.Status == status
}

// rawJSON is a body that is sent as it is.
type rawJSON []byte

// call sends body as JSON (nil: none) and reads the answer into answer (nil: it is not wanted). A refusal is
// an *apiError.
func (a *api) call(ctx context.Context, method, path string, body, answer any) error {
	if !a.known() {
		return usagef("no %s, and no context.json here that names one: where is the %s?", a.flag, a.name)
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, apiTimeout)
		defer cancel()
	}
	var payload io.Reader
	switch b := body.(type) {
	case nil:
	case rawJSON:
		payload = bytes.NewReader(b)
	default:
		data, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		payload = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(a.base.String(), "/")+path, payload)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Authorization", "Bearer "+a.bearer.First())
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("cannot reach the %s: %w", a.name, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("answer of the %s: %w", a.name, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return a.refusal(resp.StatusCode, data)
	}
	if answer == nil || len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("the %s answers what cannot be understood: is %s right? %w", a.name, a.base, err)
	}
	return nil
}

// refusal makes an error of an answer.
func (a *api) refusal(status int, data []byte) error {
	p := authapi.Problem{}
	if json.Unmarshal(data, &p) != nil || p.Title == "" && p.Detail == "" {
		p = authapi.Problem{Title: fmt.Sprintf("the %s answers %d %s", a.name, status, http.StatusText(status))}
	}
	p.Status = status
	if status == http.StatusUnauthorized {
		p.Detail = fmt.Sprintf("the %s does not accept this secret: is %s-secret-file right?", a.name, a.flag)
	}
	return &apiError{p}
}
