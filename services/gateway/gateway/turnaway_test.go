package gateway

import (
	"net"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// Who is over a cap hears of it in the words of its own protocol.

func oneConnection() dynamic.Document {
	doc := testDoc()
	doc.GatewayLimit.MaxConnections = 1
	return doc
}

func TestMQTTOverACap(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(pk *packets.Packet)
		want   map[byte]byte // CONNACK by version
	}{
		{"a good CONNECT", nil, map[byte]byte{4: 3, 5: packets.ErrServerBusy.Code}},
		{"a CONNECT that is never right", func(pk *packets.Packet) { pk.Connect.Username = []byte("root") }, map[byte]byte{4: 4, 5: 0x86}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachMQTT(t, oneConnection(), func(t *testing.T, r *rig, version byte) {
				there := r.enrolled(t, clientID(1))
				d := r.connectMQTT(t, version)
				whole := mqttConnect(d, tt.change)
				d.write(whole[:1])
				d.write(whole[1:20])
				d.write(whole[20:])
				ack := d.want(packets.Connack)
				if ack.ReasonCode != tt.want[version] {
					t.Errorf("CONNACK %#x %s, want %#x", ack.ReasonCode, ack.Properties.ReasonString, tt.want[version])
				}
				if version == 5 && tt.change == nil {
					if len(ack.Properties.User) != 1 || ack.Properties.User[0].Key != "retry_after_ms" {
						t.Fatalf("user properties %v, want retry_after_ms", ack.Properties.User)
					}
					ms, err := strconv.Atoi(ack.Properties.User[0].Val)
					if err != nil {
						t.Fatal(err)
					}
					wantRetry(t, time.Duration(ms)*time.Millisecond)
				}
				d.wantEnd()
				there.roundTrip(1)
			})
		})
	}
}

// mqttConnect is a CONNECT as the device would send it.
func mqttConnect(d *mqttDevice, change func(pk *packets.Packet)) []byte {
	pk := packets.Packet{Connect: packets.ConnectParams{
		ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 60, ClientIdentifier: "meter",
		UsernameFlag: true, Username: []byte(clientID(2).String()),
	}}
	if change != nil {
		change(&pk)
	}
	return d.encode(packets.Connect, pk)
}

// Whoever says nothing, or no CONNECT, takes no place among those that are told for longer than a HELLO may take.
func TestMQTTOverACapAndSilent(t *testing.T) {
	for name, said := range map[string]string{"nothing": "", "half a CONNECT": "\x10\x20\x00\x04MQ", "no CONNECT": "\xc0\x00", "a CONNECT over the limit": "\x10\xff\xff\x7f"} {
		t.Run(name, func(t *testing.T) {
			eachMQTT(t, oneConnection(), func(t *testing.T, r *rig, version byte) {
				r.enrolled(t, clientID(1))
				began := time.Now()
				d := r.connectMQTT(t, version)
				if said != "" {
					d.write([]byte(said))
				}
				d.wantEnd()
				if took := time.Since(began); took > r.timings.hello {
					t.Errorf("closed after %v, want within %v", took, r.timings.hello)
				}
				synctest.Wait()
				if n := len(r.farewells); n != 0 {
					t.Errorf("%d places are taken, want 0", n)
				}
			})
		})
	}
}

func TestWebSocketOverACap(t *testing.T) {
	for _, mode := range []string{tlsOn, tlsOff} {
		t.Run("tls "+mode, func(t *testing.T) {
			w := newWorld(t, oneConnection())
			s := w.gateway("gw-1", func(cfg *Config, times *timings) {
				cfg.TLS.Mode, cfg.WebSocketPage = mode, true
				times.handshake, times.linger = patience, patience
			})
			first := dialRaw(t, s.Addr())
			eventually(t, "a connection is there", func() bool { return s.connections() == 1 })

			b := w.browser(s)
			var e wire.Error
			b.want(&e)
			if e.Code != wire.CodeOverloaded || !e.Close {
				t.Errorf("error %v, want overloaded that closes", &e)
			}
			wantRetry(t, e.RetryAfter)
			if _, _, err := b.conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusTryAgainLater {
				t.Errorf("end = %v, want one that says to try again later", err)
			}

			scheme := map[string]string{tlsOn: "https://", tlsOff: "http://"}[mode]
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: w.clientTLS(), DisableKeepAlives: true}, Timeout: patience}
			resp, err := client.Get(scheme + s.WebSocketAddr() + "/")
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("the page = %d, Retry-After %q, want 503 with one", resp.StatusCode, resp.Header.Get("Retry-After"))
			} else {
				wantRetry(t, time.Duration(seconds)*time.Second)
			}

			eventually(t, "no place is taken by who was told", func() bool { return len(s.farewells) == 0 })
			if n := testutil.ToFloat64(s.metrics.gatewayRefused); n != 2 {
				t.Errorf("%v refused, want 2", n)
			}
			if n := testutil.ToFloat64(s.metrics.handshaking); n != 1 {
				t.Errorf("%v are on their way in, want 1: the first", n)
			}
			_ = first.Close()
			eventually(t, "the first has gone", func() bool { return s.connections() == 0 })
			w.settled(s)
			eventually(t, "there is room again", func() bool { return s.connections() == 0 })
			w.browser(s).hello(clientID(1))
		})
	}
}

// Who answers the close has gone, whatever he sends before, and his place is another's.
func TestWebSocketOverACapSaysGoodBye(t *testing.T) {
	webBubble(t, oneConnection(), func(t *testing.T, r *rig) {
		r.enrolled(t, clientID(1))
		began := time.Now()
		here, there := net.Pipe()
		r.accepted(there, websocketKind)
		end := newWebEnd(t, here)
		end.closes.Store(true) // before the device reads
		newDevice(t, end).wantClosed(wire.CodeOverloaded)
		for _, frame := range [][]byte{webSocketFrame(opPing, nil), webSocketFrame(opBinary, []byte("HELLO")), webSocketFrame(opClose, []byte{3, 245})} {
			if _, err := end.Conn.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n, took := len(r.farewells), time.Since(began); n != 0 || took >= r.timings.handshake {
			t.Errorf("%d places are taken after %v, want 0 at once", n, took)
		}
	})
}

// A gateway that ends waits for nobody whom it was about to tell.
func TestWebSocketOverACapAtTheEnd(t *testing.T) {
	w := newWorld(t, oneConnection())
	s := w.gateway("gw-1", func(cfg *Config, times *timings) { cfg.TLS.Mode, times.handshake = tlsOff, patience })
	dialRaw(t, s.Addr())
	eventually(t, "a connection is there", func() bool { return s.connections() == 1 })
	silent := newDevice(t, dialRaw(t, s.WebSocketAddr()))
	eventually(t, "one is about to be told", func() bool { return len(s.farewells) == 1 })
	s.Kill()
	silent.wantEnd()
}
