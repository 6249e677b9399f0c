package gateway

// Silence, limits and the end of sessions that speak MQTT.

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/internal/dynamic"
)

// PINGREQ puts off the deadline that the keep alive sets, and so does any packet.
func TestMQTTKeepAlive(t *testing.T) {
	doc := testDoc()
	doc.Heartbeat = dynamic.Heartbeat{Interval: dynamic.Duration(20 * time.Second), Missed: 3}
	eachMQTT(t, doc, func(t *testing.T, r *rig, version byte) {
		d := r.connectMQTT(t, version)
		d.connect(clientID(1), "", func(pk *packets.Packet) { pk.Connect.Keepalive = 40 })
		ack := d.want(packets.Connack)
		keep := 40 * time.Second
		if version == 5 { // the gateway says how long
			if keep = 20 * time.Second; ack.Properties.ServerKeepAlive != 20 {
				t.Errorf("server keep alive %d, want 20", ack.Properties.ServerKeepAlive)
			}
		}
		for range 5 {
			time.Sleep(keep)
			d.send(packets.Pingreq, packets.Packet{})
			d.want(packets.Pingresp)
		}
		for range 5 {
			time.Sleep(keep)
			d.publish("req/echo/1", `1`, 1)
			d.wantPuback(1, packets.CodeSuccess)
		}
		last := time.Now()
		d.wantDisconnect(packets.ErrKeepAliveTimeout)
		if silent := time.Since(last); silent < keep*3/2 || silent > keep*3/2+time.Second {
			t.Errorf("closed after %v of silence, want after %v", silent, keep*3/2)
		}
	})
}

// Without a keep alive it is the idle timeout that counts; part of a packet has to become whole.
func TestMQTTSilence(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.connectMQTT(t, 4)
		d.connect(clientID(1), "", func(pk *packets.Packet) { pk.Connect.Keepalive = 0 })
		d.want(packets.Connack)
		begun := time.Now()
		d.wantEnd()
		if silent := time.Since(begun); silent < 90*time.Second || silent > 93*time.Second {
			t.Errorf("closed after %v of silence, want 90s", silent)
		}
		half := r.enrolledMQTT(t, 4, clientID(2), nil)
		begun = time.Now()
		half.write([]byte{0x30, 0x20, 0})
		half.wantEnd()
		if silent := time.Since(begun); silent < 10*time.Second || silent > 13*time.Second {
			t.Errorf("closed after %v with half a packet, want 10s", silent)
		}
		if n := r.closed(closedFrameTimeout); n != 1 {
			t.Errorf("closed %v with %q, want 1", n, closedFrameTimeout)
		}
	})
}

// The device's limit holds for requests, and for packets that become no frames.
func TestMQTTLimit(t *testing.T) {
	doc := testDoc()
	doc.DeviceLimit.Bucket = dynamic.Bucket{Rate: 1, Burst: 4}
	eachMQTT(t, doc, func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "err/#")
		d.subscribe(0, "goshield/error")
		d.publish("req/echo/1", `1`, 1)
		d.wantPuback(1, packets.CodeSuccess)
		d.publish("req/echo/1", `1`, 2)
		d.wantPuback(2, packets.CodeSuccess)
		d.publish("req/echo/1", `1`, 3)
		if got := d.wantPublish("err/echo/1"); !strings.Contains(got, "rate_limited") || !strings.Contains(got, "retry_after_ms") {
			t.Errorf("told %s, want rate_limited", got)
		}
		d.wantPuback(3, packets.ErrQuotaExceeded)
		d.send(packets.Pingreq, packets.Packet{})
		if got := d.wantPublish("goshield/error"); !strings.Contains(got, "rate_limited") {
			t.Errorf("told %s, want rate_limited", got)
		}
		want := byte(0x80)
		if version == 5 {
			want = packets.ErrQuotaExceeded.Code
		}
		if got := d.subscribe(0, "res/#"); got[0] != want {
			t.Errorf("SUBSCRIBE over the limit: %#x, want %#x", got[0], want)
		}
	})
}

// A device that sends SUBSCRIBEs and does not read is stopped by what waits for it, as any other.
func TestMQTTDeviceThatDoesNotRead(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		here, there := net.Pipe()
		r.accepted(there, mqttKind)
		defer here.Close()
		d := &mqttDevice{t: t, conn: here, version: 4}
		d.connect(clientID(1), "", nil)
		if _, err := readPacket(here, 4); err != nil {
			t.Fatal(err)
		}
		pk := packets.Packet{PacketID: 1}
		for range 100 {
			pk.Filters = append(pk.Filters, packets.Subscription{Filter: "bad#filter"})
		}
		flood := d.encode(packets.Subscribe, pk)
		sent := 0
		for ; sent < 10_000; sent++ {
			_ = here.SetWriteDeadline(time.Now().Add(5 * time.Second))
			if _, err := here.Write(flood); err != nil {
				break
			}
		}
		ses := r.table.find(clientID(1))
		if ses == nil {
			t.Fatal("the session is gone already")
		}
		ses.mu.Lock()
		waiting := ses.out.bytes
		ses.mu.Unlock()
		if waiting > outboundLimit+1024 || sent == 10_000 {
			t.Errorf("%d bytes wait after %d packets, want at most %d", waiting, sent, outboundLimit)
		}
		time.Sleep(12 * time.Second)
		if n := r.closed(closedWriteStalled); n != 1 {
			t.Errorf("closed %v with %q, want 1", n, closedWriteStalled)
		}
	})
}

// A device that is sent away hears it on a topic, is served until then, and is told to connect again when it closes.
func TestMQTTDrain(t *testing.T) {
	eachMQTT(t, testDoc(), func(t *testing.T, r *rig, version byte) {
		d := r.enrolledMQTT(t, version, clientID(1), nil)
		d.subscribe(0, "goshield/goaway", "res/#")
		r.table.find(clientID(1)).goAway("draining", 2*time.Second, time.Second)
		if got := d.wantPublish("goshield/goaway"); got != `{"reason":"draining","after_ms":2000}` {
			t.Errorf("told %s", got)
		}
		d.publish("req/echo/1", `1`, 0)
		d.wantPublish("res/echo/1")
		d.wantDisconnect(packets.ErrServerShuttingDown)
		if n := r.closed(closedDrained); n != 1 {
			t.Errorf("closed %v with %q, want 1", n, closedDrained)
		}
	})
}
