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
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/limittest"
	"github.com/goshield/goshield/sdk/wire"
)

// What a sleeping device costs. The devices are another process, so that what this one holds is the gateway's.

// fleetAddr tells the test binary to be the devices: of TestMemoryOfParkedDevices, at that address, which may be one of WebSocket.
const fleetAddr = "GOSHIELD_TEST_FLEET"

// announce has the devices of a fleet announce what does not come.
const announce = "announce"

// TestFleet is no test of its own: for each line of standard input it enrols as many devices more, or does what it says, and prints a line.
// It holds them until standard input ends.
func TestFleet(t *testing.T) {
	addr := os.Getenv(fleetAddr)
	if addr == "" {
		t.Skip("the other process of TestMemoryOfParkedDevices")
	}
	ca, err := os.ReadFile(os.Getenv(fleetAddr + "_CA"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	var conns []net.Conn
	for in := bufio.NewScanner(os.Stdin); in.Scan(); fmt.Println("connected") {
		if in.Text() == announce {
			announceFrames(t, conns)
			continue
		}
		n, err := strconv.Atoi(in.Text())
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			conn := dialFleet(t, addr, &tls.Config{RootCAs: roots, ServerName: "localhost"})
			conns = append(conns, conn)
			frame, _ := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(len(conns))))})
			if _, err := conn.Write(frame); err != nil {
				t.Fatal(err)
			}
			if f, err := wire.NewReader(conn, wire.MaxPayload).Next(); err != nil || f.Type != wire.TypeWelcome {
				t.Fatalf("got %s %s (%v), want WELCOME", f.Type, f.Payload, err)
			}
		}
	}
	for _, c := range conns {
		_ = c.Close()
	}
}

// announceFrames sends the beginning of the longest frame, and then that of the longest record.
func announceFrames(t *testing.T, conns []net.Conn) {
	t.Helper()
	for _, c := range conns {
		conn := c.(*tls.Conn)
		if _, err := conn.Write([]byte{wire.Version1, byte(wire.TypeRequest), 0x40, 0, '{'}); err != nil { // 16 384 bytes to come
			t.Fatal(err)
		}
		if _, err := conn.NetConn().Write([]byte{23, 3, 3, 0x41, 0, 1}); err != nil { // application data, 16 640 bytes of it
			t.Fatal(err)
		}
	}
}

// fleet starts another process for devices at that address, and returns what makes it enrol so many more. It lives until the test ends.
func (w *world) fleet(addr string) (enrol func(n int)) {
	tell := w.fleetToTell(addr)
	return func(n int) { tell(strconv.Itoa(n)) }
}

// fleetToTell is fleet for those that do more than to enrol.
func (w *world) fleetToTell(addr string) (tell func(what string)) {
	w.t.Helper()
	w.write("ca.pem", w.ca.PEM())
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestFleet$")
	cmd.Env = append(os.Environ(), fleetAddr+"="+addr, fleetAddr+"_CA="+w.path("ca.pem"))
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	said := bufio.NewReader(out)
	w.t.Cleanup(func() { _ = in.Close(); _, _ = io.Copy(io.Discard, out); _ = cmd.Wait() })
	return func(what string) {
		w.t.Helper()
		if _, err := fmt.Fprintln(in, what); err != nil {
			w.t.Fatal(err)
		}
		if line, err := said.ReadString('\n'); err != nil || line != "connected\n" {
			w.t.Fatalf("fleet says %q (%v), want connected", line, err)
		}
	}
}

func dialFleet(t *testing.T, addr string, cfg *tls.Config) net.Conn {
	t.Helper()
	if !strings.Contains(addr, "/") {
		conn, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ws, _, err := websocket.Dial(t.Context(), addr, &websocket.DialOptions{ //nolint:bodyclose // the library has it
		HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}, Subprotocols: []string{websocketSubprotocol},
	})
	if err != nil {
		t.Fatal(err)
	}
	return websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
}

// A Go whose crypto/tls looks different needs another findTLSFields: sleeping devices take twice as much without.
func TestHandshakeBuffersAreFound(t *testing.T) {
	if !tlsLayout.found {
		t.Error("tls.Conn has not the buffers that releaseTLSBuffers takes away")
	}
	if findTLSFields(reflect.TypeFor[bytes.Buffer]()).found {
		t.Error("found the buffers in a type without")
	}
}

// What a parked device may hold, in bytes of live heap and stacks, is a little more than was measured: 4.7 KB, of which 0.3 are the
// fake auth-service's, and by WebSocket 6.6 KB. A goroutine would be 8 KB more, the buffers of the handshake 3.5.
func TestMemoryOfParkedDevices(t *testing.T) {
	for _, tt := range []struct {
		name string
		addr func(s *Server) string
		most float64
	}{
		{"TLS", (*Server).Addr, 6000},
		{"WebSocket over TLS", func(s *Server) string { return "wss://" + s.WebSocketAddr() + websocketPath }, 8000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each, n := memoryOfParked(t, tt.addr)
			t.Logf("%d parked devices hold %.0f bytes each", n, each)
			if each > tt.most {
				t.Errorf("a parked device holds %.0f bytes of heap and stacks, want at most %.0f", each, tt.most)
			}
		})
	}
}

// memoryOfParked is what each of n parked devices holds that came to an address of the gateway.
func memoryOfParked(t *testing.T, addr func(s *Server) string) (each float64, n int) {
	t.Helper()
	n = 300
	if long {
		n = 9000
	}
	doc := testDoc()
	doc.Heartbeat.Interval, doc.IdleTimeout = 0, dynamic.Duration(time.Hour) // they stay, however long all this takes
	w := newWorld(t, doc)
	s := w.gateway("gw-1", restless)
	enrol := w.fleet(addr(s))
	enrol(1) // what the first one brings is not the others'
	wantParked(t, s, 1)
	goroutines, before := runtime.NumGoroutine(), held()
	enrol(n)
	wantParked(t, s, n+1)
	if more := runtime.NumGoroutine() - goroutines; more > n/10 {
		t.Errorf("%d parked devices have %d goroutines, want none", n, more)
	}
	return float64(held()-before) / float64(n), n
}

// RELIABILITY row 6, over TLS and of devices that have been welcomed: each sends a header that announces the longest frame of the usual
// limit, and one that announces the longest record.
func TestMemoryOfAnnouncedRecords(t *testing.T) {
	n := 300
	if long {
		n = 3000
	}
	doc := testDoc()
	doc.Heartbeat.Interval, doc.IdleTimeout = 0, dynamic.Duration(time.Hour)
	w := newWorld(t, doc)
	s := w.gateway("gw-1", func(_ *Config, times *timings) { times.frame = time.Hour })
	tell := w.fleetToTell(s.Addr())
	before := held()
	tell(strconv.Itoa(n))
	tell(announce)
	eventually(t, "all that was sent has been read", func() bool {
		for _, ses := range s.table.all() {
			if ses.frameStart.Load() == 0 || !ses.within.Load() {
				return false
			}
		}
		return len(s.table.all()) == n
	})
	each := float64(held()-before) / float64(n)
	t.Logf("%d devices that have announced a frame and a record hold %.0f bytes each", n, each)
	most := float64(32 << 10)
	if limittest.Race {
		most = 40 << 10 // its pools forget, and each object takes more
	}
	if each > most {
		t.Errorf("a device that has announced a frame and a record holds %.0f bytes, want at most %.0f", each, most)
	}
}

// held is what the heap's live objects and all stacks take.
func held() int64 {
	debug.FreeOSMemory()
	debug.FreeOSMemory() // what was in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
