package stacktest

// The status page of the load balancer, as somebody has it open while things are broken, and a picture of it.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/goshield/goshield/sdk/client"
)

// page is a status page in a browser.
type page struct {
	ctx  context.Context
	side string // of the load balancer that it is of
}

// openPage leaves the page of the load balancer with the virtual IP open for the steps that follow: it draws the last
// five minutes.
func openPage(t *testing.T, s *stack) {
	s.page = visitPage(s.t, t, master(t))
}

// visitPage opens the page of a side in a browser that ends with owner.
func visitPage(owner, t *testing.T, side string) *page {
	t.Helper()
	browser, end := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, // root has no other way, and it visits this page only
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WSURLReadTimeout(patience),
		chromedp.WindowSize(1280, 800))...)
	owner.Cleanup(end)
	ctx, end := chromedp.NewContext(browser)
	owner.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // and waits for its process
		end()
	})
	if err := chromedp.Do(ctx); err != nil { // starts it: with a context that lasts
		t.Fatal(err)
	}
	p := &page{ctx, side}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(adminOf[side]+"/status")); err != nil {
		t.Fatalf("the status page of lb-%s: %v", side, err)
	}
	p.shows(t, "ready")
	return p
}

func (p *page) text() (string, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Text("body"))
}

// shows waits until all of it can be read on the page.
func (p *page) shows(t *testing.T, wanted ...string) {
	t.Helper()
	await(t, "the page shows "+strings.Join(wanted, ", "), patience, func() error {
		text, err := p.text()
		for _, want := range wanted {
			if err == nil && !strings.Contains(text, want) {
				err = fmt.Errorf("there is no %s in:\n%s", want, text)
			}
		}
		return err
	})
}

// picture is made of the status page after devices and gateways have joined, and one of them has frozen.
// GOSHIELD_STACK_PICTURE names a file to keep it in.
func picture(t *testing.T, s *stack) {
	up(t)
	s.fleet.settle(t)
	side := master(t)
	if s.page == nil || s.page.side != side { // this step alone, or keepalived had a reason to move the address
		s.page = visitPage(s.t, t, side)
	}
	f := startFleetAt(t, time.Second, s.keys, visitors, 120, vip+":8443", client.MemoryStore())
	up(t, "--scale", "gateway=4")
	f.settle(t)
	var gateways []string
	for _, gateway := range containers(t, "gateway") {
		gateways = append(gateways, addressIn(t, gateway, "inside"))
	}
	s.page.shows(t, gateways...)
	await(t, "the devices are spread", patience, func() error {
		status, err := statusOf(side)
		if err != nil {
			return err
		}
		if len(status.up()) != 4 || len(status.Rebalancing) > 0 {
			return errors.New("they move")
		}
		return nil
	})
	frozen := containers(t, "gateway")[0]
	docker(t, "pause", frozen)
	s.page.shows(t, "down")
	f.settle(t) // the devices that it had are back by another
	f.settle(t)
	ctx, cancel := context.WithTimeout(s.page.ctx, patience)
	defer cancel()
	image, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	docker(t, "unpause", frozen)
	if !strings.HasPrefix(string(image), "\x89PNG") {
		t.Fatalf("no picture, but %d bytes", len(image))
	}
	if file := os.Getenv("GOSHIELD_STACK_PICTURE"); file != "" {
		if !filepath.IsAbs(file) {
			file = filepath.Join("..", file)
		}
		if err := os.WriteFile(file, image, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f.stop()
	up(t)
}
