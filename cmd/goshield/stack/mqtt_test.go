package stack

// Devices that speak MQTT, played by clients that others wrote: Eclipse Paho for Go, of both versions, and Mosquitto's
// command-line programs.

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	mqtt3 "github.com/eclipse/paho.mqtt.golang"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/sdk/wire"
)

// mqttLibrary is what both libraries can do.
type mqttLibrary interface {
	subscribe(ctx context.Context, filters ...string) error
	// publish sends a message of QoS 1 and returns when it is acknowledged, whatever the acknowledgement says.
	publish(ctx context.Context, topic string, payload []byte) error
	close()
}

// mqttDevice asks services by MQTT.
type mqttDevice struct {
	lib mqttLibrary

	mu      sync.Mutex
	next    uint32
	waiting map[uint32]chan mqttAnswer
	tokens  chan string // of goshield/token; full: more are dropped
	pushed  chan string
}

type mqttAnswer struct {
	body []byte
	err  error
}

// dialMQTT connects a device and subscribes to all that it is sent. An empty token enrols.
func (f *fleet) dialMQTT(ctx context.Context, version byte, id wire.ClientID, token string) (*mqttDevice, error) {
	d := &mqttDevice{waiting: make(map[uint32]chan mqttAnswer), tokens: make(chan string, 16), pushed: make(chan string, 16)}
	connect := connectMQTT3
	if version == 5 {
		connect = connectMQTT5
	}
	var err error
	if d.lib, err = connect(ctx, f, id.String(), token, d.received); err != nil {
		return nil, err
	}
	if err := d.lib.subscribe(ctx, "res/+/+", "err/+/+", "push/+/+", "goshield/token"); err != nil {
		d.lib.close()
		return nil, err
	}
	return d, nil
}

// mqtt is dialMQTT, again where auth-service or Redis did not answer in time.
func (f *fleet) mqtt(ctx context.Context, version byte, id wire.ClientID, token string) (*mqttDevice, error) {
	for {
		d, err := f.dialMQTT(ctx, version, id, token)
		if err == nil || ctx.Err() != nil {
			return d, err
		}
		sleep(ctx, 100*time.Millisecond)
	}
}

// received takes a message.
func (d *mqttDevice) received(topic string, payload []byte) {
	payload = bytes.Clone(payload)
	kind, rest, _ := strings.Cut(topic, "/")
	switch {
	case topic == "goshield/token":
		var m struct {
			Token string `json:"token"`
		}
		_ = json.Unmarshal(payload, &m) // one that does not parse is an empty one, which no test takes
		select {
		case d.tokens <- m.Token:
		default:
		}
		return
	case kind == "push":
		d.pushed <- string(payload)
		return
	}
	_, digits, _ := strings.Cut(rest, "/")
	id, _ := strconv.ParseUint(digits, 10, 32)
	answer := mqttAnswer{body: payload}
	if kind == "err" {
		e := new(wire.Error)
		if answer.err = wire.Unmarshal(wire.Version1, payload, e); answer.err == nil {
			answer.err = e
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if ch := d.waiting[uint32(id)]; ch != nil {
		delete(d.waiting, uint32(id))
		ch <- answer
	}
}

func (d *mqttDevice) ask(ctx context.Context, service string, body []byte) ([]byte, error) {
	d.mu.Lock()
	d.next++
	id, ch := d.next, make(chan mqttAnswer, 1)
	d.waiting[id] = ch
	d.mu.Unlock()
	if err := d.lib.publish(ctx, fmt.Sprintf("req/%s/%d", service, id), body); err != nil {
		return nil, err
	}
	select {
	case a := <-ch:
		return a.body, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *mqttDevice) token(t *testing.T) string {
	t.Helper()
	select {
	case token := <-d.tokens:
		return token
	case <-time.After(time.Minute):
		t.Fatal("no token came")
		return ""
	}
}

func (d *mqttDevice) close() { d.lib.close() }

// paho3 speaks MQTT 3.1.1.
type paho3 struct{ c mqtt3.Client }

// keepAlive is after which a PINGREQ is sent: by MQTT 3.1.1 as the device says, by MQTT 5 as the gateway does, by the
// interval of heartbeats. A device whose next packet does not come within half as long again is given up, so it must not
// be short on a machine that stands still for a moment.
const keepAlive = 8 * time.Second

func connectMQTT3(ctx context.Context, f *fleet, user, password string, received func(string, []byte)) (mqttLibrary, error) {
	o := mqtt3.NewClientOptions().AddBroker("ssl://" + f.MQTTAddr()).SetTLSConfig(f.tls.Clone()).
		SetClientID("meter").SetUsername(user).SetPassword(password).SetProtocolVersion(4).SetCleanSession(true).
		SetKeepAlive(keepAlive).SetAutoReconnect(false).SetConnectTimeout(30 * time.Second)
	o.SetDefaultPublishHandler(func(_ mqtt3.Client, m mqtt3.Message) { received(m.Topic(), m.Payload()) })
	p := &paho3{mqtt3.NewClient(o)}
	return p, wait3(ctx, p.c.Connect())
}

func wait3(ctx context.Context, token mqtt3.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *paho3) subscribe(ctx context.Context, filters ...string) error {
	all := map[string]byte{}
	for _, f := range filters {
		all[f] = 1
	}
	return wait3(ctx, p.c.SubscribeMultiple(all, nil))
}

func (p *paho3) publish(ctx context.Context, topic string, payload []byte) error {
	return wait3(ctx, p.c.Publish(topic, 1, false, payload))
}

func (p *paho3) close() { p.c.Disconnect(250) }

// paho5 speaks MQTT 5.
type paho5 struct{ c *paho.Client }

func connectMQTT5(ctx context.Context, f *fleet, user, password string, received func(string, []byte)) (mqttLibrary, error) {
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: f.tls}
	conn, err := dialer.DialContext(ctx, "tcp", f.MQTTAddr())
	if err != nil {
		return nil, err
	}
	p := &paho5{paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(conn), // the library writes a packet in pieces
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(m paho.PublishReceived) (bool, error) {
			received(m.Packet.Topic, m.Packet.Payload)
			return true, nil
		}},
	})}
	ack, err := p.c.Connect(ctx, &paho.Connect{
		ClientID: "meter", CleanStart: true, KeepAlive: 30,
		UsernameFlag: true, Username: user, PasswordFlag: password != "", Password: []byte(password),
	})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	if ack.Properties.MaximumQoS == nil || *ack.Properties.MaximumQoS != 1 || ack.Properties.RetainAvailable {
		p.close()
		return nil, fmt.Errorf("CONNACK %+v, want QoS 1 at most, and nothing retained", ack.Properties)
	}
	return p, nil
}

func (p *paho5) subscribe(ctx context.Context, filters ...string) error {
	all := &paho.Subscribe{}
	for _, f := range filters {
		all.Subscriptions = append(all.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1})
	}
	_, err := p.c.Subscribe(ctx, all)
	return err
}

func (p *paho5) publish(ctx context.Context, topic string, payload []byte) error {
	ack, err := p.c.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: payload})
	if ack != nil && ack.ReasonCode != 0 {
		return nil // what it says comes as an ERROR, too
	}
	return err
}

func (p *paho5) close() {
	_ = p.c.Disconnect(&paho.Disconnect{}) // or it is gone already
	<-p.c.Done()
}

// A device gets its token, has it rotated by heartbeats, confirms the new one, and resumes with it. The one that was replaced
// revokes the device, as for all devices.
func TestMQTTTokensRotate(t *testing.T) {
	for _, version := range []byte{4, 5} {
		t.Run(strconv.Itoa(int(version)), func(t *testing.T) {
			t.Parallel()
			doc := quickDocument()
			doc.Token.Grace, doc.Heartbeat.Interval = 0, dynamic.Duration(keepAlive)
			f := start(t, doc, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			id := f.device(t, nil).ClientID
			d, err := f.mqtt(ctx, version, id, "")
			if err != nil {
				t.Fatal(err)
			}
			first := d.token(t)
			second := d.token(t) // of a PINGREQ
			if first == second {
				t.Fatal("the same token twice, want its successor")
			}
			if err := d.lib.publish(ctx, "goshield/token", []byte(`{"token":"`+second+`"}`)); err != nil {
				t.Fatalf("confirm: %v", err)
			}
			if got, err := d.ask(ctx, "echo", []byte(`1`)); err != nil || string(got) != `1` {
				t.Fatalf("after the confirmation: %s, %v", got, err)
			}
			third := d.token(t)
			d.close()

			d, err = f.mqtt(ctx, version, id, third)
			if err != nil {
				t.Fatalf("resume with the newest: %v", err)
			}
			d.close()
			if _, err := f.dialMQTT(ctx, version, id, first); err == nil {
				t.Fatal("resumed with the first token, want a refusal")
			}
			if _, err := f.dialMQTT(ctx, version, id, third); err == nil {
				t.Error("resumed after a token was used twice, want the record revoked")
			}
			if strings.Contains(f.log.String(), first) || strings.Contains(f.log.String(), third) {
				t.Error("a token stands in the log")
			}
		})
	}
}

// mosquitto runs one of Mosquitto's programs as a device. Credentials are in its configuration file, where a process list does
// not show them.
func (f *fleet) mosquitto(t *testing.T, name, user, password string, args ...string) string {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: it is in Debian's package mosquitto-clients, which scripts/test installs", err)
	}
	dir := t.TempDir()
	options := "-u " + user + "\n"
	if password != "" {
		options += "-P " + password + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(options), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(f.MQTTAddr())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"-h", host, "-p", port, "--cafile", f.CAFile()}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}

func TestMosquitto(t *testing.T) {
	f := start(t, dynamic.Default(), nil)
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			user := f.device(t, nil).ClientID.String()
			var m struct {
				Token string `json:"token"`
			}
			enrolled := f.mosquitto(t, "mosquitto_sub", user, "", "-V", version, "-t", "goshield/token", "-C", "1", "-W", "50")
			if err := json.Unmarshal([]byte(enrolled), &m); err != nil || m.Token == "" {
				t.Fatalf("enrolled with %q, %v", enrolled, err)
			}
			f.mosquitto(t, "mosquitto_pub", user, m.Token, "-V", version, "-t", "req/echo/1", "-q", "1", "-m", `{"hello":"world"}`)
			got := f.mosquitto(t, "mosquitto_rr", user, m.Token, "-V", version, "-t", "req/echo-http/7", "-e", "res/echo-http/7", "-q", "1",
				"-m", `{"hello":"world"}`, "-W", "50")
			if got != `{"hello":"world"}` {
				t.Errorf("answer %q, want the echo", got)
			}
			got = f.mosquitto(t, "mosquitto_rr", user, m.Token, "-V", version, "-t", "req/nobody/8", "-e", "err/nobody/8", "-m", `1`, "-W", "50")
			if !strings.Contains(got, `"no_such_service"`) {
				t.Errorf("answer %q, want no_such_service", got)
			}
		})
	}
}

// Two devices share a gateway, a backend and its links; each has its own answers, whatever ids it chose.
func TestMQTTAnswersStayApart(t *testing.T) {
	doc := quickDocument()
	doc.Heartbeat.Interval = dynamic.Duration(keepAlive)
	f := start(t, doc, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		d, err := f.mqtt(ctx, []byte{4, 5}[i%2], f.device(t, nil).ClientID, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.close)
		wg.Go(func() {
			for n := range 50 {
				want := fmt.Sprintf(`{"device":%d,"n":%d}`, i, n)
				got, err := d.ask(ctx, []string{"echo", "echo-http", "echo-grpc"}[n%3], []byte(want))
				if err != nil || string(got) != want {
					errs[i] = errors.Join(errs[i], fmt.Errorf("device %d: got %s, %v, want %s", i, got, err, want))
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}
