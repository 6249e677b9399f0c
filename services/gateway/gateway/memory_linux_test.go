package gateway

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// What a sleeping device costs. The devices are another process, so that what this one holds is the gateway's.

// fleetAddr tells the test binary to be the devices: of TestMemoryOfParkedDevices, at that address.
const fleetAddr = "GOSHIELD_TEST_FLEET"

// TestFleet is no test of its own: it enrols as many devices as standard input says, prints a line,
// and holds them until standard input ends.
func TestFleet(t *testing.T) {
	addr := os.Getenv(fleetAddr)
	if addr == "" {
		t.Skip("the other process of TestMemoryOfParkedDevices")
	}
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(os.Getenv(fleetAddr + "_CA"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conns := make([]net.Conn, 0, n)
	for i := range n {
		conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, ServerName: "localhost"})
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		frame, _ := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))})
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		if f, err := wire.NewReader(conn, wire.MaxPayload).Next(); err != nil || f.Type != wire.TypeWelcome {
			t.Fatalf("got %s %s (%v), want WELCOME", f.Type, f.Payload, err)
		}
	}
	fmt.Println("connected")
	_, _ = io.Copy(io.Discard, in)
	for _, c := range conns {
		_ = c.Close()
	}
}

// parkedMost is what a parked device may hold, in bytes of live heap and stacks: 4.7 KB as measured, of which 0.3 are the
// fake auth-service's. A goroutine would be 8 KB more, the buffers of the handshake 3.5.
const parkedMost = 6000

// A Go whose crypto/tls looks different needs another findTLSFields: sleeping devices take twice as much without.
func TestHandshakeBuffersAreFound(t *testing.T) {
	if !tlsLayout.found {
		t.Error("tls.Conn has not the buffers that releaseTLSBuffers takes away")
	}
	if findTLSFields(reflect.TypeFor[bytes.Buffer]()).found {
		t.Error("found the buffers in a type without")
	}
}

func TestMemoryOfParkedDevices(t *testing.T) {
	n := 300
	if long {
		n = 9000
	}
	doc := testDoc()
	doc.Heartbeat.Interval, doc.IdleTimeout = 0, dynamic.Duration(time.Hour) // they stay, however long all this takes
	w := newWorld(t, doc)
	w.write("ca.pem", w.ca.PEM())
	s := w.gateway("gw-1", restless)
	warm := w.enrolled(s, clientID(1)) // what the first one brings is not the others'
	wantParked(t, s, 1)
	before := held()

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fleet := exec.CommandContext(t.Context(), self, "-test.run=^TestFleet$")
	fleet.Env = append(os.Environ(), fleetAddr+"="+s.Addr(), fleetAddr+"_CA="+w.path("ca.pem"))
	in, err := fleet.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := fleet.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := fleet.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _, _ = io.Copy(io.Discard, out); _ = fleet.Wait() }()
	if _, err := fmt.Fprintln(in, n); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "connected\n" {
		t.Fatalf("fleet says %q (%v), want connected", line, err)
	}
	wantParked(t, s, n+1)
	after := held()
	each := float64(after-before) / float64(n)
	t.Logf("%d parked TLS devices hold %.0f bytes each", n, each)
	if each > parkedMost {
		t.Errorf("a parked TLS device holds %.0f bytes of heap and stacks, want at most %d", each, parkedMost)
	}
	warm.send(&wire.Bye{})
	warm.wantEnd()
}

// held is what the heap's live objects and all stacks take.
func held() int64 {
	debug.FreeOSMemory()
	debug.FreeOSMemory() // what was in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
