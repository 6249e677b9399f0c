package authclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/leaktest"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/wire"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const testSecret = "a-secret-of-the-tests"

var device = wire.ClientID{1}

// start is a client of that URL.
func start(t *testing.T, cfg Config) *Client {
	t.Helper()
	cfg.Secret = secret.Static(testSecret)
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Minute // for one that does not answer; what is away refuses connections
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func answer(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func TestCalls(t *testing.T) {
	token := wire.Token{1, 2, 3}
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer "+testSecret || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("request = %s %v, want a POST of JSON with the secret", r.Method, r.Header)
		}
		if _, there := r.Header["Idempotency-Key"]; there {
			t.Error("Idempotency-Key is on the wire, want it kept inside")
		}
		switch r.URL.Path {
		case authapi.PathTokens:
			var q authapi.IssueRequest
			_ = json.NewDecoder(r.Body).Decode(&q)
			if q.ClientID != device || q.Owner != "gw-1/2" {
				t.Errorf("issue request = %+v, want the device and its owner", q)
			}
			answer(w, http.StatusCreated, authapi.IssueAnswer{Token: token, ExpiresIn: 5, Epoch: 7, PreviousOwner: "gw-2/1"})
		case authapi.PathVerify:
			answer(w, http.StatusOK, authapi.VerifyAnswer{Result: authapi.ResultPromoted, GraceMS: 10000})
		case authapi.PathRotate:
			answer(w, http.StatusOK, authapi.RotateAnswer{Token: token})
		case authapi.PathRelease:
			var q []authapi.Release
			_ = json.NewDecoder(r.Body).Decode(&q)
			answer(w, http.StatusOK, authapi.ReleaseAnswer{Released: len(q)})
		default:
			t.Errorf("path = %s, want one of the API", r.URL.Path)
		}
	})
	c := start(t, Config{URL: srv.URL})
	issued, err := c.Issue(t.Context(), authapi.IssueRequest{ClientID: device, Owner: "gw-1/2"})
	if err != nil || issued.Token != token || issued.Epoch != 7 || issued.PreviousOwner != "gw-2/1" {
		t.Errorf("issue = %+v, %v, want the answer", issued, err)
	}
	verified, err := c.Verify(t.Context(), authapi.VerifyRequest{ClientID: device, Token: token})
	if err != nil || verified.Result != authapi.ResultPromoted || verified.GraceMS != 10000 {
		t.Errorf("verify = %+v, %v, want the answer", verified, err)
	}
	rotated, err := c.Rotate(t.Context(), authapi.RotateRequest{ClientID: device, Token: token})
	if err != nil || rotated.Token != token {
		t.Errorf("rotate = %+v, %v, want the answer", rotated, err)
	}
	full := make([]authapi.Release, MaxReleases)
	for i := range full {
		full[i] = authapi.Release{ClientID: device, Epoch: 1 << 62}
	}
	released, err := c.Release(t.Context(), full)
	if err != nil || released.Released != MaxReleases {
		t.Errorf("release = %+v, %v, want %d", released, err, MaxReleases)
	}
	if data, _ := json.Marshal(full); len(data) > authapi.MaxBody {
		t.Errorf("a full release is %d bytes, want at most %d", len(data), authapi.MaxBody)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Errorf("ping = %v, want nil", err)
	}
}

func TestProblems(t *testing.T) {
	for _, tt := range []struct {
		name    string
		status  int
		problem any
		code    wire.Code // "": unavailable
		retry   time.Duration
	}{
		{"wrong token", 401, authapi.Problem{Code: wire.CodeBadToken, Title: "no"}, wire.CodeBadToken, 0},
		{"revoked", 401, authapi.Problem{Code: wire.CodeRevoked}, wire.CodeRevoked, 0},
		{"blocked", 403, authapi.Problem{Code: wire.CodeUnknownClient}, wire.CodeUnknownClient, 0},
		{"guessing", 429, authapi.Problem{Code: wire.CodeRateLimited, RetryAfterMS: 1500}, wire.CodeRateLimited, 1500 * time.Millisecond},
		{"not current", 409, authapi.Problem{Code: authapi.CodeNotCurrent}, authapi.CodeNotCurrent, 0},
		{"Redis is away", 503, authapi.Problem{Code: wire.CodeAuthUnavailable, RetryAfterMS: 700}, "", 700 * time.Millisecond},
		{"our secret is wrong", 401, authapi.Problem{Code: "unauthorized"}, "", 0},
		{"a bad request", 400, authapi.Problem{Code: "bad_request"}, "", 0},
		{"another server", 404, "not found", "", 0},
		{"a broken answer", 200, "what", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := serve(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, tt.status, tt.problem) })
			_, err := start(t, Config{URL: srv.URL}).Verify(t.Context(), authapi.VerifyRequest{ClientID: device})
			var refused *wire.Error
			if tt.code != "" {
				if !errors.As(err, &refused) || refused.Code != tt.code || refused.RetryAfter != tt.retry || errors.Is(err, ErrUnavailable) {
					t.Fatalf("error = %#v, want %s with retry %v", err, tt.code, tt.retry)
				}
				if refused.Close != (tt.code != authapi.CodeNotCurrent) {
					t.Errorf("close = %v, want a verdict on the token to close", refused.Close)
				}
				return
			}
			var u *Unavailable
			if !errors.Is(err, ErrUnavailable) || !errors.As(err, &u) || u.RetryAfter != tt.retry || errors.As(err, &refused) {
				t.Errorf("error = %#v, want unavailable with retry %v", err, tt.retry)
			}
		})
	}
}

func TestURLs(t *testing.T) {
	for _, u := range []string{"", "auth:8000", "ftp://auth:8000", "http://", "http://auth:8000/v1", "http://user:password@auth:8000", "http://%zz"} {
		_, err := New(Config{URL: u})
		if err == nil {
			t.Errorf("URL %q was taken, want an error", u)
		} else if strings.Contains(err.Error(), "password") {
			t.Errorf("error %q repeats the password", err)
		}
	}
}

// Errors may be logged: they must hold no token.
func TestErrorsHoldNoToken(t *testing.T) {
	token := wire.Token{0xab, 0xcd, 0xef}
	srv := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "broken %s", token.Text()) })
	_, err := start(t, Config{URL: srv.URL}).Verify(t.Context(), authapi.VerifyRequest{Token: token})
	if err == nil || strings.Contains(err.Error(), token.Text()) {
		t.Errorf("error = %v, want one without the token", err)
	}
}

// servers on several addresses of the loopback network, behind one name.
type cluster struct {
	addrs   []string
	frozen  chan struct{} // the first one does not answer before it is closed; nil: none is frozen
	servers []*http.Server
	calls   []atomic.Int64
	port    string
	done    sync.WaitGroup
}

func newCluster(t *testing.T, n int) *cluster {
	t.Helper()
	c := &cluster{calls: make([]atomic.Int64, n), servers: make([]*http.Server, n)}
	for range n {
		c.addrs = append(c.addrs, porttest.Host())
	}
	slices.Sort(c.addrs) // as a client has them
	for i := range n {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for i := range n {
			_ = c.servers[i].Close()
		}
		c.done.Wait()
	})
	return c
}

func (c *cluster) start(t *testing.T, i int) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(c.addrs[i], c.port))
	for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		ln, err = net.Listen("tcp", net.JoinHostPort(c.addrs[i], c.port)) // somebody may have the port at all addresses, for a moment
	}
	if err != nil {
		t.Fatal(err)
	}
	_, c.port, _ = net.SplitHostPort(ln.Addr().String())
	c.servers[i] = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "auth.test:"+c.port {
			t.Errorf("host = %q, want the name", r.Host)
		}
		c.calls[i].Add(1)
		if i == 0 && c.frozen != nil {
			<-c.frozen
		}
		answer(w, http.StatusOK, authapi.VerifyAnswer{Result: authapi.ResultOK})
	})}
	c.done.Go(func() { _ = c.servers[i].Serve(ln) })
}

func (c *cluster) client(t *testing.T) *Client {
	return start(t, Config{URL: "http://auth.test:" + c.port, Lookup: c.lookup})
}

func (c *cluster) lookup(_ context.Context, host string) ([]string, error) {
	if host != "auth.test" {
		return nil, errors.New("another name")
	}
	return c.addrs, nil
}

func verify(t *testing.T, c *Client) {
	t.Helper()
	if _, err := c.Verify(t.Context(), authapi.VerifyRequest{ClientID: device}); err != nil {
		t.Errorf("verify = %v, want ok", err)
	}
}

func TestEveryAddressIsUsed(t *testing.T) {
	c := newCluster(t, 3)
	client := c.client(t)
	for range 30 {
		verify(t, client)
	}
	for i := range c.calls {
		if n := c.calls[i].Load(); n != 10 {
			t.Errorf("calls of server %d = %d, want 10", i, n)
		}
	}
}

// A server that dies costs no call, and is used again when it is back.
func TestDeadServerCostsNoCall(t *testing.T) {
	c := newCluster(t, 2)
	client := c.client(t)
	for range 10 {
		verify(t, client)
	}
	_ = c.servers[0].Close()
	for range 20 {
		verify(t, client)
	}
	c.start(t, 0)
	before := c.calls[0].Load()
	deadline := time.Now().Add(30 * time.Second)
	for c.calls[0].Load() == before {
		if time.Now().After(deadline) {
			t.Fatal("the server that came back was not used within 30 s")
		}
		verify(t, client)
		time.Sleep(10 * time.Millisecond)
	}
}

// OnState hears of an outage once, and of its end once.
func TestOutage(t *testing.T) {
	var states []error
	ln, err := net.Listen("tcp", porttest.Held(t)) // which it can give up
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, authapi.VerifyAnswer{Result: authapi.ResultOK})
	}))
	_ = srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	c := start(t, Config{URL: srv.URL, OnState: func(err error) { states = append(states, err) }})
	verify(t, c)
	addr := srv.Listener.Addr().String()
	srv.Close()
	for range 20 {
		begun := time.Now()
		if _, err := c.Verify(t.Context(), authapi.VerifyRequest{}); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("error = %v, want unavailable", err)
		}
		if took := time.Since(begun); took > 20*time.Second { // a time-out takes longer
			t.Errorf("a call to a dead server took %v, want it to fail at once", took)
		}
	}
	if !c.Down() || len(states) != 1 || states[0] == nil {
		t.Errorf("states = %v, want one reason", states)
	}
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	again := &http.Server{ReadHeaderTimeout: time.Minute, Handler: srv.Config.Handler}
	var done sync.WaitGroup
	done.Go(func() { _ = again.Serve(ln) })
	defer done.Wait()
	defer again.Close()
	deadline := time.Now().Add(30 * time.Second)
	for c.Ping(t.Context()) != nil {
		if time.Now().After(deadline) {
			t.Fatal("not available again within 30 s")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if c.Down() || len(states) != 2 || states[1] != nil {
		t.Errorf("states = %v, want a reason and nil", states)
	}
}

// A kept connection that the server has closed is no failure.
func TestClosedKeptConnection(t *testing.T) {
	srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, authapi.VerifyAnswer{Result: authapi.ResultOK})
	})
	c := start(t, Config{URL: srv.URL})
	for range 20 {
		verify(t, c)
		srv.CloseClientConnections()
	}
}

func TestConnectionsAreKept(t *testing.T) {
	var opened atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, authapi.VerifyAnswer{Result: authapi.ResultOK})
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	c := start(t, Config{URL: srv.URL})
	for range 50 {
		verify(t, c)
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("connections for 50 calls in a row = %d, want 1", n)
	}
}

func TestCallsAreBounded(t *testing.T) {
	const limit = 4
	var under, most atomic.Int64
	release := make(chan struct{})
	srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		n := under.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		under.Add(-1)
		answer(w, http.StatusOK, authapi.VerifyAnswer{Result: authapi.ResultOK})
	})
	c := start(t, Config{URL: srv.URL, MaxInFlight: limit, Timeout: time.Minute})
	var wg sync.WaitGroup
	for range 3 * limit {
		wg.Go(func() { verify(t, c) })
	}
	deadline := time.Now().Add(30 * time.Second)
	for under.Load() < limit && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Verify(ctx, authapi.VerifyRequest{}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errBusy) {
		t.Errorf("a call that found no turn = %v, want unavailable: busy", err)
	}
	if c.Down() {
		t.Error("being busy counts as an outage, want it not to")
	}
	close(release)
	wg.Wait()
	if n := most.Load(); n != limit {
		t.Errorf("calls at once = %d, want %d", n, limit)
	}
}

// A server that accepts and never answers: the call goes to another in time, and after some
// of them the server is left alone.
func TestFrozenServer(t *testing.T) {
	c := newCluster(t, 2)
	c.frozen = make(chan struct{})
	defer close(c.frozen)
	client := start(t, Config{URL: "http://auth.test:" + c.port, Timeout: 4 * time.Second, Lookup: c.lookup})
	const calls = 20
	answered := 0
	for range calls {
		if _, err := client.Verify(t.Context(), authapi.VerifyRequest{ClientID: device}); err == nil {
			answered++
		}
	}
	// The one that is well has half of the time, which may be too little on a machine that is short of it.
	if answered < calls*3/4 {
		t.Errorf("%d of %d calls were answered, want all or nearly", answered, calls)
	}
	if n := c.calls[0].Load(); n < slowStrikes || n > calls/2 {
		t.Errorf("the frozen server had %d of %d calls, want it to be left alone after %d", n, calls, slowStrikes)
	}
}

func TestNamesAreResolvedAgain(t *testing.T) {
	c := newCluster(t, 2)
	var mu sync.Mutex
	addrs := c.addrs[:1]
	s := newServers("auth.test", c.port, func(context.Context, string) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(addrs) == 0 {
			return nil, errors.New("no such host")
		}
		return addrs, nil
	})
	defer s.close()
	now := time.Now()
	first, err := s.candidates(t.Context(), now)
	if err != nil || len(first) != 1 {
		t.Fatalf("candidates = %v, %v, want one", first, err)
	}
	mu.Lock()
	addrs = c.addrs
	mu.Unlock()
	wait := func(want int) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			now = now.Add(resolveEvery)
			list, err := s.candidates(t.Context(), now)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("candidates = %d, want %d", len(list), want)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	wait(2)
	mu.Lock()
	addrs = nil // a resolver that fails leaves what is known
	mu.Unlock()
	wait(2)
	if u, err := url.Parse("http://" + first[0].hostport); err != nil || u.Hostname() != c.addrs[0] {
		t.Errorf("address = %s, want %s", first[0].hostport, c.addrs[0])
	}
}
