package browsertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"go.uber.org/zap"

	"github.com/goshield/goshield/cmd/goshield/stack"
	"github.com/goshield/goshield/internal/dynamic"
)

// patience is far more than anything here takes on a machine that is not short of time.
const patience = 2 * time.Minute

// screenshots names a directory for pictures of the page, to be looked at.
const screenshots = "GOSHIELD_TEST_SCREENSHOTS"

// page is the page in a browser. Its methods end the test when what happens is not what they say.
type page struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	faults []string // that the browser has told: exceptions, and what the page's policy forbade
}

// openBrowser starts Chromium without a window. It ends with the test.
func openBrowser(t *testing.T) *page {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Fatal("no chromium: install Debian's package of that name")
	}
	alloc, endAlloc := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox, // root has no other way, and it visits this page only
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("ignore-certificate-errors", true), // the certificate is by a CA of this run
		chromedp.WSURLReadTimeout(patience),
		chromedp.WindowSize(1100, 1000),
	)...)
	t.Cleanup(endAlloc)
	ctx, end := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // and waits for its process
		end()
	})
	p := &page{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, p.heard); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	return p
}

// heard notes faults. It is called by what reads from the browser.
func (p *page) heard(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		p.faults = append(p.faults, fmt.Sprintf("%+v", e.ExceptionDetails))
	case *log.EventEntryAdded:
		// That a connection could not be made, while a gateway ends, is not a fault of the page: it tries again.
		network := e.Entry.Source == log.EntrySourceNetwork || strings.HasPrefix(e.Entry.Text, "WebSocket connection to ")
		if e.Entry.Level == log.EntryLevelError && !network {
			p.faults = append(p.faults, e.Entry.Text+" "+e.Entry.URL)
		}
	}
}

// do does one thing in the browser.
func do[T any](p *page, what string, action chromedp.Action[T]) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	result, err := chromedp.Run(ctx, action)
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", what, err, p.told())
	}
	return result
}

// until waits for a JavaScript expression to be true.
func (p *page) until(what, expression string) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		if do(p, what, chromedp.Evaluate[bool]("Boolean("+expression+")")) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("not within %v: %s\n%s", patience, what, p.told())
		}
		<-time.After(50 * time.Millisecond)
	}
}

// text is an element's.
func (p *page) text(id string) string {
	p.t.Helper()
	return do(p, id, chromedp.Evaluate[string](fmt.Sprintf("document.getElementById(%q).textContent", id)))
}

// told is what the page and the browser say, for a test that fails.
func (p *page) told() string {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string]("document.body?.innerText ?? ''"))
	if err != nil {
		text = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("the page says:\n%s\nthe browser says: %q", text, p.faults)
}

// fill sets a field's text, and press presses a button.
func (p *page) fill(id, text string) {
	p.t.Helper()
	do(p, id, chromedp.SetValue("#"+id, text))
}

func (p *page) press(id string) {
	p.t.Helper()
	do(p, id, chromedp.Click("#"+id))
}

// picture writes what the page looks like, where that is asked for.
func (p *page) picture(name string) {
	p.t.Helper()
	dir := os.Getenv(screenshots)
	if dir == "" {
		return
	}
	png := do(p, "picture", chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// answered sends a request with a number in it and waits for its echo.
func (p *page) answered(n int) {
	p.t.Helper()
	p.fill("body", fmt.Sprintf(`{"n": %d}`, n))
	p.press("send")
	p.until(fmt.Sprintf("request %d is answered", n),
		fmt.Sprintf(`[...document.querySelectorAll('#log li.received')].some((l) => l.innerText.includes('RESPONSE') && l.innerText.includes('{"n":%d}'))`, n))
}

const online = `document.getElementById('status').textContent === 'online'`

// A browser opens the page, enrols, asks and is answered, changes its token, comes back by it after a reload, takes a
// push, and moves to another gateway when its own one drains.
func TestDeviceInABrowser(t *testing.T) {
	doc := dynamic.Default()
	doc.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(500 * time.Millisecond), Missed: 1000}
	doc.Token.RotateProbability = 1
	const any = "127.0.0.1:0"
	dir := t.TempDir()
	s, err := stack.Start(stack.Config{
		Listen: any, WebSocket: any, MQTT: any, Admin: any, Push: any, Gateways: 2, Backends: 1, DataDir: dir, Document: doc, Log: zap.NewNop(),
		DrainTimeout: time.Minute, RedisTimeout: 10 * time.Second, // all is in this process, which may stand still
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	p := openBrowser(t)
	do(p, "open the page", chromedp.Navigate("https://"+s.WebSocketAddr()+"/"))

	p.fill("mac", "00-1A-2B-3C-4D-5E")
	p.press("connect")
	p.until("it is online", online)
	if id := p.text("client"); id != "5a777ab1f5dc193f889dca9a2de5c3cae446d9b8ad6ba65769cf2f8ad60f495e" {
		t.Errorf("client_id = %s, want that of docs/PROTOCOL.md", id)
	}
	if how := p.text("opened"); how != "enrolment" {
		t.Errorf("the first session came by %q, want enrolment", how)
	}
	p.answered(1)
	p.until("the token has changed twice", `Number(document.getElementById('rotations').textContent) >= 2`)
	p.answered(2)
	p.picture("online")

	do(p, "reload", chromedp.Reload())
	p.until("it is online again", online)
	if how := p.text("opened"); how != "its token" {
		t.Errorf("after a reload the session came by %q, want its token", how)
	}
	p.answered(3)

	secret, err := os.ReadFile(filepath.Join(dir, "secrets", "push"))
	if err != nil {
		t.Fatal(err)
	}
	if status := push(t, s.PushAddr(), strings.TrimSpace(string(secret)), p.text("client")); status != http.StatusOK {
		t.Errorf("push = %d, want 200: acknowledged\n%s", status, p.told())
	}

	at := 0 // the gateway that has it
	if strings.Contains(where(t, s.PushAddr(), strings.TrimSpace(string(secret)), p.text("client")), "gateway-2") {
		at = 1
	}
	before := p.text("session")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.DrainGateway(ctx, at); err != nil {
		t.Errorf("drain: %v", err)
	}
	p.until("it has moved", online+fmt.Sprintf(` && document.getElementById('session').textContent !== %q`, before))
	if how := p.text("opened"); how != "its token" {
		t.Errorf("after the drain the session came by %q, want its token", how)
	}
	p.answered(4)
	p.picture("moved")

	p.press("connect") // it says Disconnect now
	p.until("it is offline", `document.getElementById('status').textContent === 'offline'`)
	kept := do(p, "what is kept", chromedp.Evaluate[string](`JSON.stringify(localStorage)`))
	shown := do(p, "what is shown", chromedp.Evaluate[string](`document.body.innerText`))
	var items map[string]string
	if err := json.Unmarshal([]byte(kept), &items); err != nil {
		t.Fatal(err)
	}
	var tokens struct{ Current string }
	if err := json.Unmarshal([]byte(items["token "+p.text("client")]), &tokens); err != nil || len(tokens.Current) != 36 {
		t.Errorf("localStorage = %d items, want a token among them", len(items))
	}
	if strings.Contains(shown, tokens.Current) {
		t.Error("the page shows the token")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.faults) != 0 {
		t.Errorf("the browser tells of faults: %q", p.faults)
	}
}

// push pushes to a device, and waits for its acknowledgement.
func push(t *testing.T, addr, secret, client string) int {
	t.Helper()
	status, _ := call(t, http.MethodPost, "http://"+addr+"/v1/devices/"+client+"/messages", secret, `{"service":"news","body":{"a":1},"wait_ms":20000}`)
	return status
}

// where says which gateway has a device.
func where(t *testing.T, addr, secret, client string) string {
	t.Helper()
	_, answer := call(t, http.MethodGet, "http://"+addr+"/v1/devices/"+client, secret, "")
	return answer
}

func call(t *testing.T, method, url, secret, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	resp, err := (&http.Client{Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
