package browsertest

// The load balancer's status page, as an operator uses it.

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"go.uber.org/zap"

	"github.com/goshield/goshield/cmd/goshield/stack"
	"github.com/goshield/goshield/internal/dynamic"
)

// The page shows the upstreams with their state, draws its charts, and drains one and makes it ready again for who
// knows the admin secret, and for nobody else; it loads nothing that its policy forbids, and keeps the secret to itself.
func TestStatusPage(t *testing.T) {
	const any = "127.0.0.1:0"
	dir := t.TempDir()
	s, err := stack.Start(stack.Config{
		Listen: any, WebSocket: any, MQTT: any, Admin: any, Push: any, Gateways: 2, Backends: 1, DataDir: dir,
		Document: dynamic.Default(), Log: zap.NewNop(), DrainTimeout: time.Minute, RedisTimeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	text, err := os.ReadFile(filepath.Join(dir, "secrets", "admin"))
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Fields(string(text))[0]
	p := openBrowser(t)
	do(p, "open the page", chromedp.Navigate("http://"+s.AdminAddr()+"/status"))

	const upstreams = `[...document.querySelectorAll('#upstreams tbody tr')]`
	p.until("both gateways are up, with each of their ports", upstreams+`.filter((tr) => tr.querySelectorAll('td')[1].querySelector('span').textContent === 'up').length === 6`)
	p.until("every chart has two samples", `[...document.querySelectorAll('#charts path.line')].length === 5 &&
		[...document.querySelectorAll('#charts path.line')].every((line) => line.getAttribute('d').includes('L'))`)
	p.until("the listeners are there", `document.querySelectorAll('#listeners tbody tr').length >= 3`)
	p.picture("status")

	addr := do(p, "an upstream", chromedp.Evaluate[string](upstreams+`[0].querySelector('td span').textContent`))
	state := fmt.Sprintf(upstreams+`.find((tr) => tr.innerText.includes(%q)).querySelectorAll('td')[2].textContent`, addr)
	const asked = `document.getElementById('ask').open`
	press := func(selector string) { p.t.Helper(); do(p, selector, chromedp.Click(selector)) }
	press(fmt.Sprintf(`button[aria-label="Drain %s"]`, addr))
	p.until("it asks for the secret", asked)
	p.fill("secret", "wrong")
	press("#ask button.primary")
	p.until("the wrong secret is refused", asked+` && !document.getElementById('ask-wrong').hidden`)
	if got := do(p, "state", chromedp.Evaluate[string](state)); got != "ready" {
		t.Errorf("with a wrong secret: %s is %q, want ready", addr, got)
	}
	p.fill("secret", secret)
	press("#ask button.primary")
	p.until("it drains", state+` === 'drain'`)
	press(fmt.Sprintf(`button[aria-label="Undrain %s"]`, addr)) // the secret is known by now
	p.until("it is ready again", state+` === 'ready'`)

	page := do(p, "the page", chromedp.Evaluate[string](`document.documentElement.outerHTML + JSON.stringify(localStorage) + JSON.stringify(sessionStorage) +
		document.cookie + location.href + document.getElementById('secret').value`))
	if strings.Contains(page, secret) {
		t.Error("the page keeps the secret where others find it")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.faults) != 0 {
		t.Errorf("the browser tells of faults: %q", p.faults)
	}
}
