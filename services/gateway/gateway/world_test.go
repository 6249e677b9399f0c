package gateway

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zaptest"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/porttest"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/internal/service"
	sdkbackend "github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/authclient"
)

// world is what stands around gateways, on real sockets: Redis, an auth-service that is a
// fake behind real HTTP, a backend that echoes, certificates and secrets.
type world struct {
	t        testing.TB
	redis    *redisdb.Embedded
	auth     *fakeAuth
	authHTTP *httptest.Server
	backend  *sdkbackend.Server
	handler  func(ctx context.Context, req sdkbackend.Request) (sdkbackend.Response, error) // set before the first request
	ca       *certs.CA
	dir      string
	doc      dynamic.Document
}

const testSecret = "a-secret-of-the-tests"

func newWorld(t testing.TB, doc dynamic.Document) *world {
	t.Helper()
	w := &world{t: t, auth: newFakeAuth(doc.Token), dir: t.TempDir(), doc: doc}
	w.redis, _ = redistest.Embedded(t)
	w.authHTTP = httptest.NewUnstartedServer(w.auth)
	_ = w.authHTTP.Listener.Close()
	w.authHTTP.Listener = listenAt(t, porttest.Held(t)) // which a test can give up for an outage
	w.authHTTP.Start()
	t.Cleanup(w.authHTTP.Close)
	ln := listenAt(t, "127.0.0.1:0")
	w.backend = &sdkbackend.Server{Secrets: []string{testSecret}, Handler: w.handle, Log: slog.New(slog.DiscardHandler)}
	served := make(chan struct{})
	go func() { defer close(served); _ = w.backend.Serve(ln) }()
	t.Cleanup(func() { w.backend.Close(); <-served })
	w.doc.Services = map[string]dynamic.Service{"echo": {Endpoints: []string{ln.Addr().String()}}}
	var err error
	if w.ca, err = certs.NewCA("test", time.Hour); err != nil {
		t.Fatal(err)
	}
	w.writeCertificate("gateway")
	w.write("secret", []byte(testSecret+"\n"))
	return w
}

func listenAt(t testing.TB, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (w *world) handle(ctx context.Context, req sdkbackend.Request) (sdkbackend.Response, error) {
	if w.handler != nil {
		return w.handler(ctx, req)
	}
	return sdkbackend.Response{Body: req.Body}, nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// write replaces a file at once, as a careful administrator does.
func (w *world) write(name string, data []byte) {
	w.t.Helper()
	tmp := w.path(name + ".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, w.path(name)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) writeCertificate(commonName string) {
	w.t.Helper()
	cert, key, err := w.ca.Issue(certs.Leaf{CommonName: commonName, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, ValidFor: 30 * time.Minute})
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("cert.pem", cert)
	w.write("key.pem", key)
}

func (w *world) config(node string) Config {
	cfg := DefaultConfig()
	cfg.Listen, cfg.WebSocket, cfg.MQTT, cfg.Push, cfg.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Node, cfg.Defaults = node, w.doc
	cfg.TLS = TLS{Mode: tlsOn, Cert: w.path("cert.pem"), Key: w.path("key.pem")}
	cfg.Auth = Auth{URL: w.authHTTP.URL, SecretFile: w.path("secret")}
	cfg.PushSecretFile, cfg.AdminSecretFile, cfg.Backend.SecretFile = w.path("secret"), w.path("secret"), w.path("secret")
	cfg.Redis = w.redisConfig()
	return cfg
}

// redisConfig is patient: what is away refuses connections.
func (w *world) redisConfig() redisdb.Config {
	cfg := w.redis.Config()
	cfg.Timeout, cfg.DialTimeout = patience, patience
	return cfg
}

// gateway is a gateway that serves until the test ends.
func (w *world) gateway(node string, change func(*Config, *timings)) *Server {
	w.t.Helper()
	s, err := w.tryGateway(node, change)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.Kill)
	return s
}

// tryGateway is as patient with devices and neighbours as with the machine, unless change says otherwise.
func (w *world) tryGateway(node string, change func(*Config, *timings)) (*Server, error) {
	cfg, times := w.config(node), defaultTimings()
	times.proxyHeader, times.handshake, times.hello = patience, patience, patience
	if change != nil {
		change(&cfg, &times)
	}
	s, err := New(cfg, service.Deps{Log: zaptest.NewLogger(w.t, zaptest.Level(zapLevel)), Metrics: prometheus.NewRegistry()})
	if err != nil {
		return nil, err
	}
	s.timings = times
	s.peers.timeout = patience
	s.authHTTP.Close()
	s.authHTTP, err = authclient.New(authclient.Config{
		URL: cfg.Auth.URL, Secret: secret.Static(testSecret), OnState: s.dependencyChanged(dependencyAuth), Timeout: patience,
	})
	if err != nil {
		return nil, err
	}
	s.auth = s.authHTTP
	if err := s.Start(); err != nil {
		return nil, err
	}
	return s, nil
}

func (w *world) clientTLS() *tls.Config {
	return &tls.Config{RootCAs: w.ca.Pool(), ServerName: "localhost"}
}

// dial connects a device, over TLS if the gateway speaks it.
func (w *world) dial(s *Server) *device {
	w.t.Helper()
	if s.tls == nil {
		return newDevice(w.t, dialRaw(w.t, s.Addr()))
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.Addr(), w.clientTLS())
	if err != nil {
		w.t.Fatal(err)
	}
	return newDevice(w.t, conn)
}

// enrolled is a device on that gateway, whose backend answers.
func (w *world) enrolled(s *Server, id wire.ClientID) *device {
	w.t.Helper()
	d := w.dial(s)
	d.hello(id, wire.Token{})
	return d
}

// enrolledAt is a device on a gateway of another process.
func (w *world) enrolledAt(addr string, id wire.ClientID) *device {
	w.t.Helper()
	d := newDevice(w.t, tls.Client(dialRaw(w.t, addr), w.clientTLS()))
	d.hello(id, wire.Token{})
	return d
}

// settled waits until requests are answered: links to backends open in the background.
func (w *world) settled(s *Server) {
	w.t.Helper()
	d := w.enrolled(s, clientID(250))
	eventually(w.t, "the backend is reached", func() bool {
		d.request(1, `1`)
		f, ok := d.next()
		if !ok {
			w.t.Fatalf("connection ended: %v", d.ended)
		}
		return f.Type == wire.TypeResponse
	})
	d.send(&wire.Bye{})
	d.wantEnd()
}

// eventually waits for a condition, generously: other things run on the machine.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// api calls a push API.
func api(t *testing.T, s *Server, method, path, body string) (status int, answer map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.PushAddr()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testSecret)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &answer); err != nil {
			t.Fatalf("%s %s: %d %s: %v", method, path, resp.StatusCode, data, err)
		}
	}
	return resp.StatusCode, answer
}

func deviceOf(id wire.ClientID, rest string) string { return fmt.Sprintf("/v1/devices/%s%s", id, rest) }

// setOwner writes a device's owner, as auth-service does.
func (w *world) setOwner(id wire.ClientID, owner string, epoch int64) {
	w.t.Helper()
	rdb, err := redisdb.Open(w.t.Context(), w.redisConfig())
	if err != nil {
		w.t.Fatal(err)
	}
	defer rdb.Close()
	if err := rdb.HSet(w.t.Context(), "goshield:token:{"+id.String()+"}", "owner", owner, "epoch", epoch, "gen", 1).Err(); err != nil {
		w.t.Fatal(err)
	}
}

// addNode makes a node known, as a gateway does that has just died.
func (w *world) addNode(name, value string) {
	w.t.Helper()
	rdb, err := redisdb.Open(w.t.Context(), w.redisConfig())
	if err != nil {
		w.t.Fatal(err)
	}
	defer rdb.Close()
	pipe := rdb.Pipeline()
	pipe.Set(w.t.Context(), "goshield:node:"+name, value, 0)
	pipe.ZAdd(w.t.Context(), "goshield:nodes", redis.Z{Score: float64(time.Now().Unix()), Member: name})
	if _, err := pipe.Exec(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// announceRevocation does what auth-service does with a revocation: the record, and then one
// of the two ways to tell gateways.
func (w *world) announceRevocation(id wire.ClientID, code wire.Code, publish bool) {
	w.t.Helper()
	rdb, err := redisdb.Open(w.t.Context(), w.redisConfig())
	if err != nil {
		w.t.Fatal(err)
	}
	defer rdb.Close()
	if err := rdb.HSet(w.t.Context(), "goshield:token:{"+id.String()+"}", "revoked", string(code)).Err(); err != nil {
		w.t.Fatal(err)
	}
	if publish {
		err = rdb.Publish(w.t.Context(), "goshield:revoked", id.String()+" "+string(code)).Err()
	} else {
		err = rdb.Do(w.t.Context(), "XADD", "goshield:revoked", "MAXLEN", "~", "100000", "*", "client_id", id.String(), "code", string(code)).Err()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}
