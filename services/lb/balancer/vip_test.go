package balancer

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDeparture(t *testing.T) {
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for _, tt := range []struct {
		name  string
		looks string // h: here, -: missing, o: another address is configured, which is missing
		want  string // x: the connections are reset
	}{
		{"never here", "-----", "....."},
		{"stays", "hhhhh", "....."},
		{"set anew", "hh-h-h", "......"},
		{"leaves", "hh-" + strings.Repeat("-", clearFor+3) + "h", "..." + strings.Repeat("x", clearFor) + "...."},
		{"returns and leaves", "h---h--", "..xx..x"},
		{"another one", "hoooo", "....."},
	} {
		var d departure
		got := ""
		for _, look := range tt.looks {
			vip := one
			if look == 'o' {
				vip = other
			}
			if d.look(vip, look == 'h') {
				got += "x"
			} else {
				got += "."
			}
		}
		if got != tt.want {
			t.Errorf("%s: looks %s: got %s, want %s", tt.name, tt.looks, got, tt.want)
		}
	}
}

// In a failover a device was silent for 25 s: the balancer that the virtual IP came back to still had a connection
// from the same port, of the time before the address had left it.
func TestConnectionsLeaveWithTheVirtualIP(t *testing.T) {
	a := startGateway(t, "a", "")
	cfg := testConfig(a.addr)
	cfg.VIP = "127.0.0.1"
	looks := make(chan bool)
	r := startWith(t, cfg, systemLookup, func(s *Server) {
		s.vipWatch.local = func(netip.Addr) (bool, error) { return <-looks, nil }
	})
	t.Cleanup(func() { close(looks) }) // before it is killed, which waits for the look under way
	look := func(here bool) {
		t.Helper()
		select {
		case looks <- here:
		case <-time.After(patience):
			t.Fatal("nobody looks for the address")
		}
	}
	r.waitUp(t, 1)
	c, _ := r.connect(t)
	look(true)
	look(false)
	c.echo(t)
	look(false)
	if _, err := c.r.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ended with %v, want a reset", err)
	}
	eventually(t, "its place is free", func() bool { return r.engine.Connections() == 0 })
	look(true)
	eventually(t, "it is logged", func() bool { return r.logged("the virtual IP has left: its connections are reset") == 1 })
	c, _ = r.connect(t)
	look(true)
	look(true)
	c.echo(t)
}
