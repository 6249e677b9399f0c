// Package authclient is the gateway's client of auth-service (docs/PROTOCOL.md §2):
// tokens issued, verified and rotated, sessions released.
//
//	c, err := authclient.New(authclient.Config{URL: "http://auth-service:8000", Secret: sec})
//	answer, err := c.Verify(ctx, authapi.VerifyRequest{ClientID: id, Token: tok})
//	switch e := (*wire.Error)(nil); {
//	case errors.As(err, &e): // a verdict: tell the device
//	case errors.Is(err, authclient.ErrUnavailable): // no verdict can be had now
//	}
//	...
//	c.Close()
//
// Connections are kept open and shared. A name with several addresses is several servers: calls take
// turns among them, a call whose connection fails goes to another at once, and one that failed
// is left alone for a while. Every operation bears being repeated, so every one is. The number of
// calls under way is bounded, and so is the time that one may take.
//
// It decides nothing and caches nothing.
package authclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/wire"
)

// ErrUnavailable is what errors.Is finds in an error that is no verdict: auth-service was
// not reached, did not answer in time, cannot decide just now, or answered what
// nobody understands.
var ErrUnavailable = errors.New("auth-service unavailable")

// Unavailable is that error. RetryAfter is how long auth-service asked to wait, 0 if it
// did not.
type Unavailable struct {
	RetryAfter time.Duration
	Err        error
}

// Error implements error.
func (u *Unavailable) Error() string { return ErrUnavailable.Error() + ": " + u.Err.Error() }

// Unwrap implements errors.Unwrap.
func (u *Unavailable) Unwrap() error { return u.Err }

// Is implements errors.Is for ErrUnavailable.
func (u *Unavailable) Is(target error) bool { return target == ErrUnavailable }

// errBusy: as many calls as allowed were under way until the deadline.
var errBusy = errors.New("too many calls under way")

// The values in force where a Config leaves them 0.
const (
	DefaultTimeout     = 2 * time.Second
	DefaultMaxInFlight = 128
)

const maxAnswer = 64 << 10 // bytes

// Config is what a Client needs. URL and Secret are required.
type Config struct {
	URL         string         // http or https, host and port: every path is auth-service's own
	Secret      *secret.Secret // the gateways' bearer secret
	Timeout     time.Duration  // of a call with all its attempts; a quarter of it is for a connection
	MaxInFlight int            // calls under way at once; more of them wait their turn
	// OnState, if not nil, hears when auth-service stops being available (with the reason) and when it is
	// again (nil): once each time. It must not block.
	OnState func(err error)
	// Lookup resolves the host; nil: the system's resolver.
	Lookup func(ctx context.Context, host string) ([]string, error)
}

// Client calls auth-service. It is safe for concurrent use; make it with New,
// end it with Close.
type Client struct {
	cfg     Config // static
	scheme  string // static
	host    string // static: as it stands in the URL, for the Host header
	http    *http.Transport
	servers *servers
	slots   chan struct{} // one token per call under way

	down atomic.Bool // what OnState heard last
}

// New makes a client; it connects to nothing yet. The error is about cfg.URL.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, errors.New("not a URL") // url.Error would repeat what may hold a password
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || (u.Path != "" && u.Path != "/") {
		return nil, fmt.Errorf("must be http://host:port or https://host:port")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = DefaultMaxInFlight
	}
	if cfg.Lookup == nil {
		cfg.Lookup = net.DefaultResolver.LookupHost
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	dialer := &net.Dialer{Timeout: cfg.Timeout / 4, KeepAlive: 15 * time.Second}
	return &Client{
		cfg:     cfg,
		scheme:  u.Scheme,
		host:    u.Host,
		servers: newServers(u.Hostname(), port, cfg.Lookup),
		slots:   make(chan struct{}, cfg.MaxInFlight),
		http: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()},
			MaxIdleConnsPerHost:    cfg.MaxInFlight,
			IdleConnTimeout:        90 * time.Second,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 16 << 10,
			ReadBufferSize:         4 << 10,
			WriteBufferSize:        4 << 10,
		},
	}, nil
}

// Close gives up the connections and waits for what runs in the background. No call
// may be made after it.
func (c *Client) Close() {
	c.servers.close()
	c.http.CloseIdleConnections()
}

// Issue enrols a device.
func (c *Client) Issue(ctx context.Context, r authapi.IssueRequest) (authapi.IssueAnswer, error) {
	return call[authapi.IssueAnswer](ctx, c, authapi.PathTokens, r)
}

// Verify asks whether a token is good; a *wire.Error says that it is not.
func (c *Client) Verify(ctx context.Context, r authapi.VerifyRequest) (authapi.VerifyAnswer, error) {
	return call[authapi.VerifyAnswer](ctx, c, authapi.PathVerify, r)
}

// Rotate asks for a successor of the current token. A *wire.Error of authapi.CodeNotCurrent says that the
// token is good but not the current one.
func (c *Client) Rotate(ctx context.Context, r authapi.RotateRequest) (authapi.RotateAnswer, error) {
	return call[authapi.RotateAnswer](ctx, c, authapi.PathRotate, r)
}

// MaxReleases is how many sessions one Release can carry: a request body is bounded.
const MaxReleases = authapi.MaxBody / 160

// Release gives up to MaxReleases sessions up.
func (c *Client) Release(ctx context.Context, r []authapi.Release) (authapi.ReleaseAnswer, error) {
	return call[authapi.ReleaseAnswer](ctx, c, authapi.PathRelease, r)
}

// Ping asks whether auth-service answers at all: it releases nothing.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.Release(ctx, []authapi.Release{})
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return nil // any verdict is an answer
	}
	return err
}

// call makes one call within the client's bounds and tells OnState how it went.
func call[A any](ctx context.Context, c *Client, path string, body any) (answer A, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return answer, &Unavailable{Err: errBusy}
	}
	payload, err := json.Marshal(body)
	if err != nil {
		return answer, &Unavailable{Err: fmt.Errorf("encode %s: %w", path, err)}
	}
	data, err := c.post(ctx, path, payload)
	if err == nil {
		if jsonErr := json.Unmarshal(data, &answer); jsonErr != nil {
			err = &Unavailable{Err: fmt.Errorf("%s: the answer is no such JSON", path)} // without it: it holds a token
		}
	}
	if !errors.Is(err, context.Canceled) { // the caller's own doing
		c.report(err)
	}
	return answer, err
}

// report tells OnState of a change.
func (c *Client) report(err error) {
	down := errors.Is(err, ErrUnavailable)
	if c.down.Swap(down) == down || c.cfg.OnState == nil {
		return
	}
	if !down {
		err = nil // a verdict is an answer too
	}
	c.cfg.OnState(err)
}

// post sends the request to one server after the other until one answers.
func (c *Client) post(ctx context.Context, path string, payload []byte) ([]byte, error) {
	servers, err := c.servers.candidates(ctx, time.Now())
	if err != nil {
		return nil, &Unavailable{Err: err}
	}
	for i, srv := range servers {
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if i < len(servers)-1 {
			attempt, cancel = context.WithTimeout(ctx, c.cfg.Timeout/2) // leave time for another
		}
		var data []byte
		data, err = c.exchange(attempt, srv.hostport, path, payload)
		timedOut := attempt.Err() != nil
		cancel()
		if answered(err) {
			c.servers.succeeded(srv)
			return data, err
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, &Unavailable{Err: ctx.Err()}
		}
		c.servers.failed(srv, time.Now(), timedOut)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, &Unavailable{Err: err}
}

// answered reports whether a server answered, whatever it said.
func answered(err error) bool {
	var verdict *wire.Error
	var unavailable *Unavailable
	return err == nil || errors.As(err, &verdict) || errors.As(err, &unavailable)
}

// exchange is one request to one server. Its error is a *wire.Error or an *Unavailable if the server answered.
func (c *Client) exchange(ctx context.Context, hostport, path string, payload []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.scheme+"://"+hostport+path, bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	req.Host = c.host
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.cfg.Secret.First())
	// Present but empty: net/http then sends the request again where a kept connection turns out to be
	// closed, and the header stays off the wire.
	req.Header["Idempotency-Key"] = []string{}
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return data, nil
	}
	return nil, problem(resp.StatusCode, data)
}

// problem turns an error answer into a verdict for the device, or into an
// *Unavailable where it is none.
func problem(status int, data []byte) error {
	var p authapi.Problem
	if err := json.Unmarshal(data, &p); err != nil {
		return &Unavailable{Err: fmt.Errorf("status %d without a problem", status)}
	}
	retry := time.Duration(p.RetryAfterMS) * time.Millisecond
	switch p.Code {
	case wire.CodeBadToken, wire.CodeTokenExpired, wire.CodeTokenReused, wire.CodeRevoked,
		wire.CodeUnknownClient, wire.CodeBadProof, wire.CodeRateLimited:
		message := p.Detail
		if message == "" {
			message = p.Title
		}
		return &wire.Error{Code: p.Code, Message: message, RetryAfter: retry, Close: true}
	case authapi.CodeNotCurrent:
		return &wire.Error{Code: p.Code, Message: p.Title}
	}
	return &Unavailable{RetryAfter: retry, Err: fmt.Errorf("status %d, code %q", status, p.Code)}
}

// Down reports whether the last call that was reported found auth-service unavailable.
func (c *Client) Down() bool { return c.down.Load() }
