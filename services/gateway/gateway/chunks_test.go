package gateway

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/goshield/goshield/sdk/wire"
)

// conversation is what a device sends after its HELLO.
func conversation(tb testing.TB, token wire.Token) []byte {
	tb.Helper()
	var b []byte
	var err error
	for _, m := range []wire.Message{
		&wire.Request{ID: 1, Token: token, Service: "echo", Body: []byte(`{"a":1}`)},
		&wire.Heartbeat{Token: token},
		&wire.Request{ID: 2, Token: token, Service: "nowhere", Body: []byte(`[]`)},
		&wire.PushAck{ID: 7},
		&wire.Request{ID: 3, Token: token, Service: "echo", Body: []byte(`"` + strings.Repeat("x", 5000) + `"`)},
		&wire.Bye{},
	} {
		if b, err = wire.Append(b, wire.Version1, m); err != nil {
			tb.Fatal(err)
		}
	}
	return b
}

// FuzzChunks cuts a conversation anywhere and joins it anywhere: the gateway's answers are the same
// (RELIABILITY row 8). Each byte of cuts is the length of the next write, 0 for all that is left.
func FuzzChunks(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
	f.Add([]byte{3, 2, 255, 255, 255, 255, 255, 1, 4, 1, 0})
	f.Fuzz(func(t *testing.T, cuts []byte) {
		bubble(t, testDoc(), func(t *testing.T, r *rig) {
			d := r.enrolled(t, clientID(1))
			rest := conversation(t, d.token)
			for _, n := range cuts {
				if n == 0 || len(rest) <= int(n) {
					break
				}
				d.write(rest[:n])
				rest = rest[n:]
				synctest.Wait() // the gateway has read so far
			}
			d.write(rest)
			var got strings.Builder
			for {
				frame, ok := d.next()
				if !ok {
					break
				}
				fmt.Fprintf(&got, "%s %d|", frame.Type, len(frame.Payload))
			}
			const want = "RESPONSE 23|HEARTBEAT_ACK 2|ERROR 83|RESPONSE 5018|"
			if got.String() != want {
				t.Errorf("answers = %s, want %s", got.String(), want)
			}
		})
	})
}

// RELIABILITY row 6: a header alone makes the gateway hold no more than the frame
// that it announces, which the limit bounds.
func TestMemoryOfAnnouncedFrames(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		const n = 200
		used := func() uint64 {
			synctest.Wait()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapInuse + m.StackInuse
		}
		conns := make([]net.Conn, n)
		before := used()
		for i := range conns {
			here, there := net.Pipe()
			r.accepted(there, deviceKind)
			conns[i] = here
			if _, err := here.Write([]byte{1, 1, 0x40, 0x00, '{'}); err != nil { // 16 384 bytes to come
				t.Fatal(err)
			}
		}
		if per := int64(used()-before) / n; per > 32<<10 {
			t.Errorf("memory per connection = %d bytes, want at most 32 KiB", per)
		}
		for _, c := range conns {
			_ = c.Close()
		}
	})
}
