package stack

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/client"
)

// A device whose gateway is killed goes on with its TLS session at the next one, which spares both the signature: the gateways have the keys
// of tickets in common, and keep them when they are started anew.
func TestTLSResumesAtAnotherGateway(t *testing.T) {
	f := start(t, quickDocument(), nil)
	made := make(chan client.Connected, 64) // hooks must not block
	var at atomic.Int32
	cfg := f.device(t, client.MemoryStore())
	cfg.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return pastBalancer(f.gateways[at.Load()].addr)(ctx, network, addr)
	}
	cfg.Hooks.OnConnect = func(info client.Connected) { made <- info }
	c := dial(t, cfg)
	defer c.Close()
	ask := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Request(ctx, "echo", []byte(`1`)); err != nil { // who has read the answer has read the ticket
			t.Fatal(err)
		}
	}
	connected := func(where string, resumed bool) {
		t.Helper()
		select {
		case info := <-made:
			if info.TLSResumed != resumed {
				t.Errorf("%s: TLS resumed %v, want %v", where, info.TLSResumed, resumed)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: not connected", where)
		}
		ask()
	}
	connected("the first gateway", false)
	at.Store(1)
	f.KillGateway(0)
	connected("the other gateway", true)
	if err := f.StartGateway(0); err != nil {
		t.Fatal(err)
	}
	at.Store(0)
	f.KillGateway(1)
	connected("the first gateway, started anew", true)
	if err := f.StartGateway(1); err != nil {
		t.Fatal(err)
	}
}
