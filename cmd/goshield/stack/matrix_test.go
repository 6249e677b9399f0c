package stack

// Every device encoding over every transport to every backend protocol: the
// same requests, errors and pushes. The table that comes of it stands in
// docs/PROTOCOL.md; "go test -run TestMatrix -update ./cmd/goshield/stack"
// writes it.

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/echo-backend/echo"
)

var update = flag.Bool("update", false, "write the tables that tests produce into the documentation")

// backendProtocols are the columns of the matrix.
var backendProtocols = []string{"link", "http", "grpc"}

// speaker is a kind of device: a row of the matrix.
type speaker struct {
	name    string
	connect func(ctx context.Context, m *matrixCell, cfg client.Config) (asker, error)
}

// asker is a device of any kind.
type asker interface {
	ask(ctx context.Context, service string, body []byte) ([]byte, error)
	close()
}

var speakers = []speaker{
	{"version 1, TLS", connectSDK(wire.Version1, nil)},
	{"version 2, TLS", connectSDK(wire.Version2, nil)},
	{"version 1, WebSocket", connectSDK(wire.Version1, dialWebSocket)},
	{"version 2, WebSocket", connectSDK(wire.Version2, dialWebSocket)},
	{"MQTT 3.1.1, TLS", connectMQTT(4)},
	{"MQTT 5, TLS", connectMQTT(5)},
}

// sdkDevice is one that uses the project's own client.
type sdkDevice struct{ *client.Client }

func (d sdkDevice) ask(ctx context.Context, service string, body []byte) ([]byte, error) {
	return d.Request(ctx, service, body)
}

func (d sdkDevice) close() { d.Close() }

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// connectSDK takes nil for TLS.
func connectSDK(version byte, dial func(f *fleet) dialer) func(context.Context, *matrixCell, client.Config) (asker, error) {
	return func(ctx context.Context, m *matrixCell, cfg client.Config) (asker, error) {
		cfg.Version = version
		cfg.OnPush = func(p client.Push) { m.pushed <- string(p.Body) }
		if dial != nil { // brings its own TLS
			cfg.TLS, cfg.NoChannelBinding, cfg.DialContext = nil, true, dial(m.f)
		}
		cfg.KeepDialing = true // as long as ctx
		c, err := client.Dial(ctx, cfg)
		return sdkDevice{c}, err
	}
}

func connectMQTT(version byte) func(context.Context, *matrixCell, client.Config) (asker, error) {
	return func(ctx context.Context, m *matrixCell, cfg client.Config) (asker, error) {
		d, err := m.f.mqtt(ctx, version, cfg.ClientID, "")
		if err == nil {
			m.pushed = d.pushed
		}
		return d, err
	}
}

// cells are what is tried of each pair, in the order of the table.
var cells = []struct {
	name string
	try  func(m *matrixCell) error
}{
	{"request", (*matrixCell).request},
	{"error", (*matrixCell).failing},
	{"timeout", (*matrixCell).timeout},
	{"push", (*matrixCell).push},
	{"big body", (*matrixCell).bigBody},
	{"concurrent", (*matrixCell).concurrent},
}

// matrixCell is one device and one backend protocol.
type matrixCell struct {
	f        *fleet
	device   asker
	id       wire.ClientID
	protocol string
	pushed   chan string
}

// echoName is the route to the echo service that this protocol reaches.
func (m *matrixCell) echoName() string {
	if m.protocol == "link" {
		return "echo"
	}
	return "echo-" + m.protocol
}

func (m *matrixCell) ask(service, body string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := m.device.ask(ctx, service, []byte(body))
	return string(answer), err
}

func (m *matrixCell) echoes(body string) error {
	got, err := m.ask(m.echoName(), body)
	if err == nil && got != body {
		err = fmt.Errorf("got %.60q, want %.60q", got, body)
	}
	return err
}

func (m *matrixCell) request() error { return m.echoes(`{"hello":["world",1]}`) }

func wantError(err error, code wire.Code) error {
	if e := (*wire.Error)(nil); errors.As(err, &e) && e.Code == code {
		return nil
	}
	return fmt.Errorf("got %v, want %s", err, code)
}

func (m *matrixCell) failing() error {
	_, err := m.ask("failing-"+m.protocol, `1`)
	if err := wantError(err, wire.CodeBackendError); err != nil {
		return err
	}
	_, err = m.ask("nobody", `1`)
	return wantError(err, wire.CodeNoSuchService)
}

func (m *matrixCell) timeout() error {
	_, err := m.ask("slow-"+m.protocol, `1`)
	return wantError(err, wire.CodeBackendTimeout)
}

// push asks the service to push, or, where it speaks HTTP, uses the push API as
// such a service would.
func (m *matrixCell) push() error {
	body := fmt.Sprintf(`{"n":%q}`, m.protocol)
	switch m.protocol {
	case "http":
		if err := m.pushAPI(body); err != nil {
			return err
		}
	default:
		name := "push"
		if m.protocol != "link" {
			name += "-" + m.protocol
		}
		if _, err := m.ask(name, `{"body":`+body+`}`); err != nil {
			return err
		}
	}
	select {
	case pushed := <-m.pushed:
		if pushed != body {
			return fmt.Errorf("pushed %s, want %s", pushed, body)
		}
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("no push came")
	}
}

func (m *matrixCell) pushAPI(body string) error {
	secret, err := os.ReadFile(m.f.secrets.Push)
	if err != nil {
		return err
	}
	call, err := http.NewRequest(http.MethodPost, "http://"+m.f.PushAddr()+"/v1/devices/"+m.id.String()+"/messages",
		strings.NewReader(`{"service":"alerts","wait_ms":5000,"body":`+body+`}`))
	if err != nil {
		return err
	}
	call.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(secret)))
	resp, err := http.DefaultClient.Do(call)
	if err != nil {
		return err
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("push API: %s", resp.Status)
	}
	return nil
}

func (m *matrixCell) bigBody() error {
	return m.echoes(`"` + strings.Repeat("x", 15000) + `"`)
}

func (m *matrixCell) concurrent() error {
	errs := make([]error, 100)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = m.echoes(fmt.Sprintf(`{"n":%d}`, i)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func TestMatrix(t *testing.T) {
	doc := dynamic.Default()
	doc.Services = map[string]dynamic.Service{}
	dir := t.TempDir()
	secrets, err := ensureSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	addRoutes(t, secrets, doc.Services, "slow", func(cfg *echo.Config) { cfg.Delay = time.Minute }, 300*time.Millisecond)
	addRoutes(t, secrets, doc.Services, "failing", func(cfg *echo.Config) { cfg.FailureRate = 1 }, 0)
	doc.DeviceLimit.Rate = 0
	f := startIn(t, dir, doc, nil)

	var table strings.Builder
	fmt.Fprintf(&table, "| device | backend |")
	for _, cell := range cells {
		fmt.Fprintf(&table, " %s |", cell.name)
	}
	table.WriteString("\n|---|---|" + strings.Repeat("---|", len(cells)) + "\n")
	for _, sp := range speakers {
		for _, protocol := range backendProtocols {
			fmt.Fprintf(&table, "| %s | %s |", sp.name, protocol)
			m := f.cell(t, sp, protocol)
			for _, cell := range cells {
				word := "yes"
				if err := cell.try(m); err != nil {
					t.Errorf("%s, %s, %s: %v", sp.name, protocol, cell.name, err)
					word = "**no**"
				}
				fmt.Fprintf(&table, " %s |", word)
			}
			table.WriteByte('\n')
			m.device.close()
		}
	}
	wantInDocs(t, "../../../docs/PROTOCOL.md", "matrix", table.String())
}

// cell connects a device.
func (f *fleet) cell(t *testing.T, sp speaker, protocol string) *matrixCell {
	t.Helper()
	m := &matrixCell{f: f, protocol: protocol, pushed: make(chan string, 16)}
	cfg := f.device(t, client.MemoryStore())
	m.id = cfg.ClientID
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var err error
	if m.device, err = sp.connect(ctx, m, cfg); err != nil {
		t.Fatalf("%s: %v", sp.name, err)
	}
	t.Cleanup(m.device.close)
	return m
}

// addRoutes runs an echo backend of its own and adds routes to it by each protocol.
func addRoutes(t *testing.T, secrets secretFiles, routes map[string]dynamic.Service, name string, change func(*echo.Config), timeout time.Duration) {
	t.Helper()
	cfg := echo.DefaultConfig()
	cfg.Listen, cfg.HTTP, cfg.GRPC = anyPort, anyPort, anyPort
	cfg.SecretFile = secrets.Backend
	change(&cfg)
	srv, err := echo.New(cfg, service.Deps{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Kill)
	for protocol, addr := range map[string]string{"link": srv.Addr(), "http": srv.HTTPAddr(), "grpc": srv.GRPCAddr()} {
		routes[name+"-"+protocol] = dynamic.Service{Protocol: protocol, Endpoints: []string{addr}, Timeout: dynamic.Duration(timeout)}
	}
}

// wantInDocs wants a produced text between the markers of its name.
func wantInDocs(t *testing.T, path, name, want string) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	open, end := []byte("<!-- "+name+": produced by a test -->\n"), []byte("<!-- end of "+name+" -->")
	from, to := bytes.Index(page, open), bytes.Index(page, end)
	if from < 0 || to < from {
		t.Fatalf("%s has no place for %s", path, name)
	}
	from += len(open)
	if string(page[from:to]) == want {
		return
	}
	if !*update {
		t.Errorf("%s: %s is not what the test produced (run it with -update):\n%s", path, name, want)
		return
	}
	page = slices.Concat(page[:from], []byte(want), page[to:])
	if err := os.WriteFile(path, page, 0o644); err != nil {
		t.Fatal(err)
	}
}

// dialWebSocket reaches the device endpoint as a browser would.
func dialWebSocket(f *fleet) dialer {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		transport := &http.Transport{TLSClientConfig: f.tls.Clone()}
		//nolint:bodyclose // the library closes it
		ws, _, err := websocket.Dial(ctx, "wss://"+f.WebSocketAddr()+"/device", &websocket.DialOptions{
			Subprotocols: []string{"goshield"}, HTTPClient: &http.Client{Transport: transport},
		})
		if err != nil {
			return nil, err
		}
		ws.SetReadLimit(wire.HeaderSize + wire.MaxPayload)
		return &frameConn{Conn: websocket.NetConn(context.Background(), ws, websocket.MessageBinary)}, nil
	}
}

// frameConn writes each frame as a message of its own.
type frameConn struct{ net.Conn }

func (c *frameConn) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		h, err := wire.ParseHeader(rest, wire.MaxPayload)
		if err != nil {
			return len(p) - len(rest), err
		}
		n := wire.HeaderSize + int(h.Length)
		if _, err := c.Conn.Write(rest[:n]); err != nil {
			return len(p) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(p), nil
}
