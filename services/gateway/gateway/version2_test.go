package gateway

// Devices that speak version 2: the same rules, in Protocol Buffers, and bodies
// of any bytes.

import (
	"strings"
	"testing"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// connect2 is a new connection that will speak version 2.
func (r *rig) connect2(t *testing.T) *device {
	t.Helper()
	d := r.connect(t)
	d.version = wire.Version2
	return d
}

func TestVersion2Session(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.connect2(t)
		d.hello(clientID(1), wire.Token{})
		d.roundTrip(1)
		const body = "\x00\xff is no JSON"
		d.request(2, body)
		var resp wire.Response
		if d.want(&resp); resp.ID != 2 || string(resp.Body) != body {
			t.Errorf("response %d %q, want 2 %q", resp.ID, resp.Body, body)
		}
		d.request(3, "")
		if d.want(&resp); resp.ID != 3 || len(resp.Body) != 0 {
			t.Errorf("response %d %q, want 3 and no body", resp.ID, resp.Body)
		}
		results := make(chan link.PushResult, 1)
		r.pushFromBackend(clientID(1), "news", []byte{0xfe}, func(p link.PushResult) { results <- p })
		var p wire.Push
		if d.want(&p); p.Service != "news" || string(p.Body) != "\xfe" {
			t.Errorf("push %s %q, want news and the body byte for byte", p.Service, p.Body)
		}
		d.send(&wire.PushAck{ID: p.ID})
		if got := <-results; got != link.PushAcknowledged {
			t.Errorf("push became %v, want acknowledged", got)
		}
		d.beat()
		d.send(&wire.Request{ID: 4, Token: d.token, Service: "nobody", Body: []byte{1}})
		if e := d.wantError(wire.CodeNoSuchService); !e.HasID || e.ID != 4 || e.Close {
			t.Errorf("got %+v, want an answer to request 4", e)
		}
		d.send(&wire.Bye{})
		d.wantEnd()
	})
}

func TestVersion2Rotation(t *testing.T) {
	doc := testDoc()
	doc.Token.RotateProbability = 1
	bubble(t, doc, func(t *testing.T, r *rig) {
		d := r.connect2(t)
		d.hello(clientID(1), wire.Token{})
		old := d.token
		for range 10 {
			if ack := d.beat(); !ack.Token.IsZero() {
				d.token = ack.Token
				break
			}
		}
		if d.token == old {
			t.Fatal("no HEARTBEAT_ACK brought a new token")
		}
		d.roundTrip(1)
	})
}

func TestVersionOfAConnection(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(d *device)
		want wire.Code
		says string
	}{
		{"a later frame of version 1", func(d *device) { d.version = wire.Version1; d.request(1, `1`) },
			wire.CodeBadVersion, "frame version 1 on a connection of version 2"},
		{"a payload that is no protobuf", func(d *device) { d.write([]byte{2, 3, 0, 1, 0xff}) },
			wire.CodeBadFrame, "REQUEST payload is not Protocol Buffers at byte 0"},
		{"a field that does not fit", func(d *device) { d.write([]byte{2, 8, 0, 2, 0x0a, 0}) },
			wire.CodeBadFrame, "PUSH_ACK.id must be a whole number from 0 to 4294967295"},
		{"no token", func(d *device) { d.token = wire.Token{}; d.request(1, `1`) },
			wire.CodeAuthRequired, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				d := r.connect2(t)
				d.hello(clientID(1), wire.Token{})
				tt.then(d)
				f, ok := d.next()
				if !ok || f.Version != wire.Version2 || f.Type != wire.TypeError {
					t.Fatalf("got %s of version %d, want an ERROR of version 2", f.Type, f.Version)
				}
				var e wire.Error
				if err := wire.Unmarshal(f.Version, f.Payload, &e); err != nil {
					t.Fatal(err)
				}
				if e.Code != tt.want || !strings.Contains(e.Message, tt.says) || !e.Close {
					t.Errorf("got %v, want %s: %s", &e, tt.want, tt.says)
				}
				d.wantEnd()
			})
		})
	}
}
