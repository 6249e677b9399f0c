package gateway

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Devices that speak MQTT, packet by packet. Real clients are in cmd/goshield/stack.

// mqttVersions are run as subtests.
var mqttVersions = map[string]byte{"3.1.1": 4, "5": 5}

func TestMQTTRequest(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		if got := d.subscribe(1, "res/+/+", "err/#"); got[0] != 1 || got[1] != 1 {
			t.Fatalf("granted %v, want QoS 1", got)
		}
		d.publish("req/echo/0", `{"n":0}`, 0)
		if got := d.wantPublish("res/echo/0"); got != `{"n":0}` {
			t.Errorf("answer %s, want the echo", got)
		}
		d.publish("req/echo/4294967295", ``, 9)
		if got := d.wantPublish("res/echo/4294967295"); got != `null` {
			t.Errorf("answer %s to an empty body, want null", got)
		}
		d.wantPuback(9, packets.CodeSuccess)

		r.router.holding(true)
		d.publish("req/echo/7", `[7]`, 10)
		d.publish("req/echo/8", `[8]`, 11)
		synctest.Wait()
		select {
		case pk := <-d.packets:
			t.Fatalf("got %s before the backend answered, want nothing", packets.PacketNames[pk.FixedHeader.Type])
		default:
		}
		r.router.answerAll()
		for i, want := range []string{"[7]", "[8]"} {
			if got := d.wantPublish(fmt.Sprintf("res/echo/%d", 7+i)); got != want {
				t.Errorf("answer %s, want %s", got, want)
			}
			d.wantPuback(uint16(10+i), packets.CodeSuccess)
		}
		r.router.holding(false)

		d.publish("req/nobody/9", `1`, 12)
		var e struct {
			Code string `json:"code"`
			ID   uint32 `json:"id"`
		}
		if err := json.Unmarshal([]byte(d.wantPublish("err/nobody/9")), &e); err != nil || e.Code != "no_such_service" || e.ID != 9 {
			t.Errorf("error %+v, %v, want no_such_service of 9", e, err)
		}
		d.wantPuback(12, packets.ErrTopicNameInvalid)
		d.send(packets.Disconnect, packets.Packet{})
		d.wantEnd()
		if n := r.closed(closedBye); n != 1 {
			t.Errorf("closed %v with %q, want 1", n, closedBye)
		}
	})
}

// A body that is no JSON is refused; the connection, and what else is in flight on it, goes on. No text in it can reach the
// envelope that other devices' frames are made of.
func TestMQTTBodyThatIsNoJSON(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "#")
		_ = d.wantPublish("goshield/token")
		for i, body := range []string{"hello", `1,"token":"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, `{"n":1}}`, "\xff"} {
			d.publish("req/echo/1", body, uint16(i+1))
			if got := d.wantPublish("err/echo/1"); !strings.Contains(got, `"code":"bad_frame"`) || !strings.Contains(got, `"close":false`) {
				t.Errorf("body %q: %s, want bad_frame that does not close", body, got)
			}
			d.wantPuback(uint16(i+1), packets.ErrPayloadFormatInvalid)
		}
		if n := r.router.count(); n != 0 {
			t.Errorf("%d requests reached the router, want none", n)
		}
		d.publish("req/echo/1", `"again"`, 0)
		d.wantPublish("res/echo/1")
	})
}

func TestMQTTBytes(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), func(pk *packets.Packet) { pk.Connect.Username = append(pk.Connect.Username, "/bytes"...) })
		d.subscribe(0, "res/#")
		d.publish("req/echo/1", "\xff\x00", 0)
		if got := d.wantPublish("res/echo/1"); got != "\xff\x00" {
			t.Errorf("answer %q, want the echo", got)
		}
	})
}
