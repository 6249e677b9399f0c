package gateway

import (
	"crypto/tls"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// Packets that are lost. A filter on a socket takes them away before TCP sees them, so there is neither an
// acknowledgement nor a reset, as on a line that is cut.

// Instructions of classic BPF, and the place where it finds a random number.
const (
	bpfLoad   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfAtMost = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	bpfReturn = unix.BPF_RET | unix.BPF_K
	bpfRandom = 0xfffff000 + 56 // SKF_AD_OFF + SKF_AD_RANDOM
)

// lose takes away a share of the packets that come to a socket, from now on.
func lose(t *testing.T, c net.Conn, share float64) {
	t.Helper()
	// What is at most this of 2^32 is lost.
	program := []unix.SockFilter{
		{Code: bpfLoad, K: bpfRandom},
		{Code: bpfAtMost, K: uint32(share * 0xffffffff), Jt: 1},
		{Code: bpfReturn, K: 0},
		{Code: bpfReturn, K: 0xffffffff},
	}
	control(t, c, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
}

// retransmitted is how many segments a socket has sent again.
func retransmitted(t *testing.T, c net.Conn) (n int) {
	t.Helper()
	control(t, c, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = int(info.Total_retrans)
		}
		return err
	})
	return n
}

func control(t *testing.T, c net.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if failed != nil {
		t.Fatal(failed)
	}
}

// wired is a device and the two ends of its TCP connection.
type wired struct {
	*device
	own, gateways net.Conn
}

// wired enrols a device over TLS. nil: its connection has ended already.
func (w *world) wired(s *Server, id wire.ClientID) *wired {
	w.t.Helper()
	raw := dialRaw(w.t, s.Addr())
	d := newDevice(w.t, tls.Client(raw, w.clientTLS()))
	d.hello(id, wire.Token{})
	s.sockets.mu.Lock()
	defer s.sockets.mu.Unlock()
	for sock := range s.sockets.all {
		if sock.RemoteAddr().String() == raw.LocalAddr().String() {
			return &wired{d, raw, sock.Conn}
		}
	}
	return nil
}

// RELIABILITY row 11: devices that vanish, one asleep, one with a push on its way to it, end with the heartbeat deadline,
// and leave nothing behind.
func TestVanishedDevices(t *testing.T) {
	// A machine that is short of time may need longer than the deadline to have them vanish.
	for deadline := time.Second; !vanish(t, deadline); deadline *= 4 {
		if deadline > time.Minute {
			t.Fatalf("two devices could not be connected within %v", deadline)
		}
	}
}

// vanish reports whether the devices were there until they vanished.
func vanish(t *testing.T, deadline time.Duration) bool {
	t.Helper()
	promise := patience / 2 // on a machine that is short of time
	if long {
		promise = 5 * time.Second
	}
	doc := testDoc()
	doc.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(deadline / 2), Missed: 2}
	w := newWorld(t, doc)
	s := w.gateway("gw-1", nil)
	defer s.Kill()
	begun := time.Now()
	asleep, busy := w.wired(s, clientID(1)), w.wired(s, clientID(2))
	if asleep == nil || busy == nil {
		return false
	}
	lose(t, asleep.own, 1)
	lose(t, busy.own, 1)
	cut := time.Now()
	if cut.Sub(begun) > deadline/2 {
		return false
	}
	if status, _ := api(t, s, "POST", deviceOf(clientID(2), "/messages"), `{"service":"news","body":1}`); status != 202 && status != 404 {
		t.Errorf("push to a device that has vanished = %d, want 202, or 404 once that is known", status)
	}
	eventually(t, "both are closed for their heartbeats, and forgotten", func() bool {
		s.sockets.mu.Lock()
		defer s.sockets.mu.Unlock()
		return testutil.ToFloat64(s.metrics.closed.WithLabelValues(string(wire.CodeHeartbeatTimeout))) == 2 && len(s.sockets.all) == 0
	})
	if took := time.Since(begun); took < deadline {
		t.Errorf("closed %v after they began to connect, want %v at least", took, deadline)
	}
	if took := time.Since(cut); took > deadline+promise {
		t.Errorf("closed %v after they vanished, want at most %v", took, deadline+promise)
	}
	for _, d := range []*wired{asleep, busy} {
		select {
		case f, ok := <-d.frames:
			t.Errorf("the device hears of it: %v %v", f.Type, ok)
		default:
		}
	}
	return true
}

// RELIABILITY row 14: of all packets in either direction one in ten is lost, and nobody is taken for dead.
func TestPacketLoss(t *testing.T) {
	// The deadline leaves TCP time for seven tries in a row, after 0, 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s, and for a probe
	// before the second: in less than one run of a million all of them are lost for one of the devices.
	const devices, interval, missed = 4, time.Second, 15
	rounds := missed + 2
	if long {
		rounds = 60
	}
	doc := testDoc()
	doc.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(interval), Missed: missed}
	w := newWorld(t, doc)
	s := w.gateway("gw-1", nil)
	w.settled(s)
	fleet := make([]*wired, devices)
	for i := range fleet {
		if fleet[i] = w.wired(s, clientID(byte(i))); fleet[i] == nil {
			t.Fatal("the gateway has no such connection")
		}
		lose(t, fleet[i].own, 0.1)
		lose(t, fleet[i].gateways, 0.1)
	}
	begun := time.Now()
	for round := range rounds {
		for _, d := range fleet {
			d.send(&wire.Heartbeat{Token: d.token})
			d.request(uint32(round), `1`)
		}
		time.Sleep(time.Until(begun.Add(time.Duration(round+1) * interval)))
	}
	again := 0
	for _, d := range fleet {
		again += retransmitted(t, d.own) + retransmitted(t, d.gateways)
		acks, answers := 0, 0
		for range 2 * rounds {
			switch f, ok := d.next(); {
			case !ok:
				t.Fatalf("the connection ended (%v) after %d acks and %d answers", d.ended, acks, answers)
			case f.Type == wire.TypeHeartbeatAck:
				acks++
			case f.Type == wire.TypeResponse:
				answers++
			default:
				t.Fatalf("got %s %s", f.Type, f.Payload)
			}
		}
		if acks != rounds || answers != rounds {
			t.Errorf("%d acks and %d answers, want %d of each", acks, answers, rounds)
		}
	}
	if again == 0 {
		t.Error("no segment was sent again: no packets were lost")
	}
	if n := testutil.ToFloat64(s.metrics.closed.WithLabelValues(string(wire.CodeHeartbeatTimeout))); n != 0 {
		t.Errorf("closed for their heartbeats: %v, want none", n)
	}
}
