package main

// Enrolment in mode allowlist, from the command line to Redis and back.

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// A device that `goshield device add` registers while gateways run is let in at once, by every one of them; so is each of a file. One
// that `device remove` forgets is out at once.
func TestAllowlistWhileGatewaysRun(t *testing.T) {
	doc := dynamic.Default()
	doc.Enrolment = dynamic.EnrolAllowlist
	s, env := stackWith(t, 2, doc)
	tls, err := (&target{}).tlsConfig(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	// dial is one connection of a device without a token: welcomed, or refused with that code. What a busy machine could not decide
	// in time (auth_unavailable) is asked again.
	dial := func(mac string) (*client.Client, wire.Code) {
		t.Helper()
		id, err := wire.ClientIDFromMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; {
			c, err := client.Dial(t.Context(), client.Config{Addr: s.Addr(), TLS: tls, ClientID: id, TokenStore: client.MemoryStore()})
			if err == nil {
				return c, ""
			}
			var refused *wire.Error
			if !errors.As(err, &refused) {
				t.Fatalf("%s: %v", mac, err)
			}
			if refused.Code != wire.CodeAuthUnavailable || time.Now().After(deadline) {
				return nil, refused.Code
			}
		}
	}
	refused := func(mac string) {
		t.Helper()
		if c, code := dial(mac); code != wire.CodeUnknownClient {
			if c != nil {
				_ = c.Close()
			}
			t.Errorf("%s, which is not registered: %q, want unknown_client", mac, code)
		}
	}
	// welcomed dials twice: the balancer takes turns, so that each gateway is asked.
	welcomed := func(mac string) {
		t.Helper()
		for range 2 {
			c, code := dial(mac)
			if c == nil {
				t.Fatalf("%s, just registered: %s, want to be welcome at once", mac, code)
			}
			_ = c.Close()
		}
	}
	refused(testMAC) // by a gateway, and once more by the other
	refused(testMAC)
	invoke(env, "", "device", "add", testMAC).expect(t, "add", 0, "registered 1 of 1\n", "")
	welcomed(testMAC)

	fleet := []string{"00:1a:2b:00:00:01", "00:1a:2b:00:00:02", "00:1a:2b:00:00:03"}
	refused(fleet[0])
	invoke(env, "mac\n"+strings.Join(fleet, "\n")+"\n", "device", "add", "--file", "-").expect(t, "add", 0, "registered 3 of 3\n", "")
	for _, mac := range fleet {
		welcomed(mac)
	}
	invoke(env, "", "device", "remove", testMAC).expect(t, "remove", 0, "removed 1 of 1\n", "")
	refused(testMAC)
	welcomed(fleet[0])
}
