package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// Connections to an HTTP service.
const (
	dialTimeout = 2 * time.Second
	idleTimeout = time.Minute
	// keptIdle is how many connections stay open between calls, of HTTP/1.1.
	keptIdle = 128
	// maxHeader bounds an answer's header, in bytes.
	maxHeader = 16 << 10
)

// httpCaller calls POST <address>/<service>; see docs/PROTOCOL.md.
type httpCaller struct {
	cfg       Config
	base      string // without a slash at its end
	transport *http.Transport
	client    *http.Client
	calls     atomic.Uint64 // numbers request ids
}

func newHTTPCaller(cfg Config) *httpCaller {
	dialer := &net.Dialer{Timeout: dialTimeout}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!cfg.HTTP2)
	protocols.SetHTTP2(cfg.HTTP2)
	protocols.SetUnencryptedHTTP2(cfg.HTTP2)
	scheme := "http://"
	if cfg.TLS != nil {
		scheme = "https://"
	}
	t := &http.Transport{
		DialContext:            dialer.DialContext,
		MaxConnsPerHost:        MaxCalls + 1, // and the probe: a service that is busy is not unwell
		MaxIdleConnsPerHost:    keptIdle,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
		Protocols:              protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	if cfg.TLS != nil {
		version := "http/1.1"
		if cfg.HTTP2 {
			version = "h2"
		}
		t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c := cfg.TLS()
			c.NextProtos = []string{version}
			return (&tls.Dialer{NetDialer: dialer, Config: c}).DialContext(ctx, network, addr) // the dialer's timeout is for both
		}
	}
	return &httpCaller{
		cfg:       cfg,
		base:      scheme + cfg.Address,
		transport: t,
		client: &http.Client{
			Transport:     t,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func (c *httpCaller) close() { c.transport.CloseIdleConnections() }

// run does nothing: an HTTP service pushes by the gateways' push API.
func (c *httpCaller) run(context.Context, *backend.Server) {}

func (c *httpCaller) handle(ctx context.Context, req backend.Request) (backend.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/"+url.PathEscape(req.Service), bytes.NewReader(req.Body))
	if err != nil {
		return backend.Response{}, wire.Errorf(wire.CodeBackendError, "the service's address makes no URL")
	}
	contentType := "application/octet-stream"
	if req.JSON {
		contentType = "application/json"
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Goshield-Client-Id", req.ClientID.String())
	r.Header.Set("Goshield-Request-Id", c.cfg.Node+"/"+strconv.FormatUint(c.calls.Add(1), 36))
	r.Header.Set("Authorization", "Bearer "+c.cfg.Secret())
	resp, err := c.client.Do(r)
	if err != nil {
		return backend.Response{}, httpFailure(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 300 {
		drain(resp)
		return backend.Response{}, wire.Errorf(statusCode(resp.StatusCode), "the backend answered HTTP status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return backend.Response{}, httpFailure(ctx, err)
	case len(body) > maxAnswer:
		return backend.Response{}, tooLong()
	case len(body) == 0 && req.JSON:
		body = []byte("null") // such as status 204
	}
	return backend.Response{Body: body}, nil
}

// statusCode is what a status of no success is in the protocol's codes. Those of 500 and more tell of the service and not of the
// request, 501 and 505 excepted: HAProxy (observe layer7) counts the same as errors of a server, Envoy all from 500 on.
func statusCode(status int) wire.Code {
	if status >= 500 && status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported {
		return link.CodeBackendFailed
	}
	return wire.CodeBackendError
}

// drain reads what is left of an answer, within bounds, so that the connection can be used again. After a switch of
// protocols (101) there is no end of it.
func drain(resp *http.Response) {
	if resp.StatusCode >= 200 {
		_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer)
	}
}

// httpFailure is why there is no answer, in the protocol's codes. Addresses are
// none of a device's business.
func httpFailure(ctx context.Context, err error) error {
	var netErr net.Error
	var errno syscall.Errno
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // backend_timeout, or nobody waits
	case errors.As(err, &errno) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return wire.Errorf(wire.CodeBackendUnavailable, "the backend cannot be reached, or broke the connection")
	case errors.As(err, new(*net.OpError)) || (errors.As(err, &netErr) && netErr.Timeout()):
		return wire.Errorf(wire.CodeBackendUnavailable, "the backend cannot be reached")
	}
	return wire.Errorf(link.CodeBackendFailed, "the backend's answer is not HTTP")
}

func (c *httpCaller) probe(ctx context.Context) error {
	if c.cfg.HealthPath == "" {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.cfg.Address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+c.cfg.HealthPath, nil)
	if err != nil {
		return err
	}
	resp, err := c.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	drain(resp)
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s: status %d", c.cfg.HealthPath, resp.StatusCode)
	}
	return nil
}
