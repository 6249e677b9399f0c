package gateway

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// The push API of whole gateways, over real sockets.

// RELIABILITY row 53.
func TestPushAPI(t *testing.T) {
	w := newWorld(t, testDoc())
	a, b, d := w.deviceElsewhere()
	ses := b.table.find(clientID(1))
	w.setOwner(clientID(2), "gw-dead/1", 7)
	w.setOwner(clientID(3), "gw-a/1", 7)
	messages := deviceOf(clientID(1), "/messages")
	const body = `{ "text": "<a> & <b>",  "n": 1.50 }`
	for _, s := range []*Server{b, a} { // here, and by one hop
		status, _ := api(t, s, http.MethodPost, messages, `{"service":"news","body":`+body+`}`)
		if status != http.StatusAccepted {
			t.Errorf("%s: status = %d, want 202", s.cfg.Node, status)
		}
		var p wire.Push
		d.want(&p)
		if p.Service != "news" || string(p.Body) != body {
			t.Errorf("%s: push = %s %s, want the body byte for byte", s.cfg.Node, p.Service, p.Body)
		}
		answered := make(chan int)
		go func() {
			status, _ := api(t, s, http.MethodPost, messages, `{"service":"news","body":1,"wait_ms":20000}`)
			answered <- status
		}()
		d.want(&p)
		d.send(&wire.PushAck{ID: p.ID})
		if status := <-answered; status != http.StatusOK {
			t.Errorf("%s: status of an acknowledged push = %d, want 200", s.cfg.Node, status)
		}
		if status, answer := api(t, s, http.MethodPost, messages, `{"service":"news","body":1,"wait_ms":50}`); status != http.StatusGatewayTimeout || answer["code"] != string(codeNoAck) {
			t.Errorf("%s: status without an acknowledgement = %d %v, want 504 no_ack", s.cfg.Node, status, answer)
		}
		d.want(&p)
		for _, gone := range []byte{2, 3, 9} { // its gateway is dead, has forgotten it, or there never was one
			if status, _ := api(t, s, http.MethodPost, deviceOf(clientID(gone), "/messages"), `{"service":"news","body":1}`); status != http.StatusNotFound {
				t.Errorf("%s: push to device %d = %d, want 404", s.cfg.Node, gone, status)
			}
		}
		status, where := api(t, s, http.MethodGet, deviceOf(clientID(1), ""), "")
		if status != http.StatusOK || where["node"] != "gw-b" || where["session"] != ses.name() {
			t.Errorf("%s: whereabouts = %d %v, want gw-b and the session", s.cfg.Node, status, where)
		}
		if status, _ := api(t, s, http.MethodGet, deviceOf(clientID(2), ""), ""); status != http.StatusNotFound {
			t.Errorf("%s: whereabouts of a device whose gateway is dead = %d, want 404", s.cfg.Node, status)
		}
	}
	if status, _ := api(t, a, http.MethodDelete, deviceOf(clientID(1), "/session"), ""); status != http.StatusNoContent {
		t.Errorf("kick by way of the other gateway = %d, want 204", status)
	}
	d.wantClosed(wire.CodeKicked)
	if status, _ := api(t, b, http.MethodDelete, deviceOf(clientID(1), "/session"), ""); status != http.StatusNotFound {
		t.Errorf("second kick = %d, want 404", status)
	}
}

func TestPushAPIRefusals(t *testing.T) {
	w := newWorld(t, testDoc())
	s := w.gateway("gw-1", nil)
	id := deviceOf(clientID(1), "")
	// Connections are kept: a server that is asked to close one need not read the
	// body that it refuses, and its reset may then overtake its answer.
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for _, tt := range []struct {
		name, method, path, body string
		want                     int
	}{
		{"no client_id", http.MethodPost, "/v1/devices/abc/messages", `{"service":"a","body":1}`, 400},
		{"no JSON", http.MethodPost, id + "/messages", `{`, 400},
		{"no body", http.MethodPost, id + "/messages", `{"service":"a"}`, 400},
		{"no service", http.MethodPost, id + "/messages", `{"body":1}`, 400},
		{"bytes, which are for gateways among each other", http.MethodPost, id + "/messages", `{"service":"a","body_base64":"MQ=="}`, 400},
		{"waits too long", http.MethodPost, id + "/messages", `{"service":"a","body":1,"wait_ms":3600000}`, 400},
		{"too long", http.MethodPost, id + "/messages", `{"service":"a","body":"` + strings.Repeat("x", 80000) + `"}`, 400},
		{"takeover without epoch", http.MethodDelete, id + "/session?reason=taken_over", "", 400},
		{"unknown reason", http.MethodDelete, id + "/session?reason=idle_timeout", "", 400},
		{"no cursor", http.MethodGet, "/v1/devices?cursor=abc", "", 400},
		{"no cursor of all", http.MethodGet, "/v1/devices?scope=all&cursor=abc", "", 400},
		{"no cursor of a gateway", http.MethodGet, "/v1/devices?scope=all&cursor=gw-1/abc", "", 400},
		{"unknown scope", http.MethodGet, "/v1/devices?scope=some", "", 400},
		{"unknown path", http.MethodGet, "/v1/nothing", "", 404},
	} {
		req, err := http.NewRequest(tt.method, "http://"+s.PushAddr()+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{testSecret, "a-wrong-secret-of-tests"} {
			req.Header.Set("Authorization", "Bearer "+secret)
			req.Body, _ = req.GetBody()
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			want := tt.want
			if secret != testSecret {
				want = http.StatusUnauthorized
			}
			if resp.StatusCode != want {
				t.Errorf("%s: status = %d, want %d", tt.name, resp.StatusCode, want)
			}
		}
	}
}

// One gateway lists the devices of all of them, in pages; one that cannot be asked is named.
func TestDevicesOfAllGateways(t *testing.T) {
	doc := testDoc()
	doc.Heartbeat.Interval, doc.IdleTimeout = 0, dynamic.Duration(time.Hour) // they stay, however long all this takes
	w := newWorld(t, doc)
	a, b := w.gateway("gw-a", nil), w.gateway("gw-b", nil)
	awaitNodes(t, a, "gw-a", "gw-b")
	w.addNode("gw-aa", `{"push":"127.0.0.1:1"}`) // it has just died
	w.addNode("gw-z", `{}`)
	const more = devicesPage + 20 // two pages
	for i := range more {
		w.enrolled(b, wire.ClientID{0: byte(i), 31: 1})
	}
	w.enrolled(a, clientID(1))
	for _, s := range []*Server{a, b} {
		of, missing, pages := map[string]int{}, []string{}, 0
		for cursor := ""; ; pages++ {
			status, answer := api(t, s, http.MethodGet, "/v1/devices?scope=all&cursor="+url.QueryEscape(cursor), "")
			if status != http.StatusOK {
				t.Fatalf("%s: status = %d %v, want 200", s.cfg.Node, status, answer)
			}
			for _, d := range answer["devices"].([]any) {
				of[d.(map[string]any)["node"].(string)]++
			}
			if m, ok := answer["missing"].([]any); ok {
				missing = append(missing, fmt.Sprint(m...))
			}
			if cursor, _ = answer["cursor"].(string); cursor == "" {
				break
			}
		}
		if of["gw-a"] != 1 || of["gw-b"] != more || !slices.Equal(missing, []string{"gw-aa", "gw-z"}) || pages != 4 {
			t.Errorf("%s: devices = %v, missing = %q, pages = %d; want 1 and %d, gw-aa and gw-z, and 5", s.cfg.Node, of, missing, pages+1, more)
		}
	}
	status, answer := api(t, a, http.MethodGet, "/v1/devices?scope=all&cursor=gw-ab/"+clientID(255).String(), "")
	if status != http.StatusOK || len(answer["devices"].([]any)) != devicesPage {
		t.Errorf("after a gateway that is gone: status = %d with %v, want the next one's first page", status, answer["devices"])
	}
	w.redis.Stop()
	if status, _ := api(t, a, http.MethodGet, "/v1/devices?scope=all", ""); status != http.StatusServiceUnavailable {
		t.Errorf("status without Redis = %d, want 503", status)
	}
	if status, answer := api(t, a, http.MethodGet, "/v1/devices", ""); status != http.StatusOK || len(answer["devices"].([]any)) != 1 {
		t.Errorf("its own devices without Redis = %d %v, want one", status, answer)
	}
}

func TestDevicesAreListedInPages(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		const n = 30
		for i := range byte(n) {
			id := clientID(7)
			id[0], id[1] = i%3, i // several in one part of the table
			r.enrolled(t, id)
		}
		seen := map[wire.ClientID]bool{}
		var from *wire.ClientID
		for pages := 0; ; pages++ {
			list, last := r.table.page(from, 7)
			for _, ses := range list {
				if seen[ses.client] || (from != nil && string(ses.client[:]) <= string(from[:])) {
					t.Errorf("%s comes again or out of order", ses.client)
				}
				seen[ses.client] = true
				from = &ses.client
			}
			if last {
				if pages < n/7 {
					t.Errorf("pages = %d, want %d", pages+1, n/7+1)
				}
				break
			}
		}
		if len(seen) != n {
			t.Errorf("devices listed = %d, want %d", len(seen), n)
		}
	})
}
