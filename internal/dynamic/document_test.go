package dynamic

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/transcode"
)

func TestDefaultIsValid(t *testing.T) {
	doc := Default()
	if err := doc.Validate(); err != nil {
		t.Error(err)
	}
}

// RELIABILITY row 25: what cannot be used is refused by its key. Each value is one step outside; the
// largest would overflow where durations are multiplied and added.
func TestValidateNamesTheKey(t *testing.T) {
	most := Duration(math.MaxInt64)
	for _, tt := range []struct {
		name   string
		change func(d *Document)
		want   string // key; "": it is valid
	}{
		{"no heartbeats", func(d *Document) { d.Heartbeat.Interval = 0 }, ""},
		{"interval too short", func(d *Document) { d.Heartbeat.Interval = Duration(9 * time.Millisecond) }, "heartbeat.interval"},
		{"interval too long", func(d *Document) { d.Heartbeat.Interval = most }, "heartbeat.interval"},
		{"none missed", func(d *Document) { d.Heartbeat.Missed = 0 }, "heartbeat.missed"},
		{"more missed than there is time", func(d *Document) { d.Heartbeat.Missed = math.MaxInt64 }, "heartbeat.missed"},
		{"the longest silence", func(d *Document) { d.Heartbeat = Heartbeat{Interval: Duration(maxSilence), Missed: maxMissed} }, ""},
		{"idle too short", func(d *Document) { d.IdleTimeout = 0 }, "idle_timeout"},
		{"idle too long", func(d *Document) { d.IdleTimeout = most }, "idle_timeout"},
		{"frames too short", func(d *Document) { d.Frame.MaxBytes = 255 }, "frame.max_bytes"},
		{"frames too long", func(d *Document) { d.Frame.MaxBytes = 65536 }, "frame.max_bytes"},
		{"nothing in flight", func(d *Document) { d.MaxInFlight = 0 }, "max_in_flight"},
		{"too much in flight", func(d *Document) { d.MaxInFlight = 65537 }, "max_in_flight"},
		{"a negative rate", func(d *Document) { d.DeviceLimit.Rate = -1 }, "device_limit.rate"},
		{"a rate that is no number", func(d *Document) { d.DeviceLimit.Rate = math.NaN() }, "device_limit.rate"},
		{"no burst", func(d *Document) { d.DeviceLimit.Burst = 0.5 }, "device_limit.burst"},
		{"no limit needs no burst", func(d *Document) { d.DeviceLimit.Bucket = Bucket{} }, ""},
		{"neither reject nor wait", func(d *Document) { d.DeviceLimit.OnLimit = "" }, "device_limit.on_limit"},
		{"bytes below zero", func(d *Document) { d.DeviceLimit.Bytes.Rate = -1 }, "device_limit.bytes.rate"},
		{"a frame above the burst", func(d *Document) { d.DeviceLimit.Bytes = Bucket{Rate: 1, Burst: 16383} }, "device_limit.bytes.burst"},
		{"no connections", func(d *Document) { d.GatewayLimit.MaxConnections = 0 }, "gateway_limit.max_connections"},
		{"too many handshakes", func(d *Document) { d.GatewayLimit.MaxHandshakes = math.MaxInt64 }, "gateway_limit.max_handshakes"},
		{"no life", func(d *Document) { d.Token.TTL = 0 }, "token.ttl"},
		{"eternal life", func(d *Document) { d.Token.TTL = most }, "token.ttl"},
		{"always rotated", func(d *Document) { d.Token.RotateProbability = 1 }, ""},
		{"rotated too often", func(d *Document) { d.Token.RotateProbability = 1.01 }, "token.rotate_probability"},
		{"a chance that is no number", func(d *Document) { d.Token.RotateProbability = math.NaN() }, "token.rotate_probability"},
		{"no grace", func(d *Document) { d.Token.Grace = 0 }, ""},
		{"grace below zero", func(d *Document) { d.Token.Grace = -1 }, "token.grace"},
		{"grace as long as life", func(d *Document) { d.Token.Grace = d.Token.TTL }, "token.grace"},
		{"rechecked too often", func(d *Document) { d.Token.Recheck = 0 }, "token.recheck"},
		{"rechecked too seldom", func(d *Document) { d.Token.Recheck = Duration(31 * time.Second) }, "token.recheck"},
		{"another enrolment", func(d *Document) { d.Enrolment = "closed" }, "enrolment"},
		{"a name with a space", service("e cho", Service{DNS: "b:1"}), "services"},
		{"another protocol", service("echo", Service{DNS: "b:1", Protocol: "soap"}), "services.echo.protocol"},
		{"HTTP 2", service("echo", Service{DNS: "b:1", Protocol: "http", HTTPVersion: "2", HealthPath: "/healthz"}), ""},
		{"HTTP 3", service("echo", Service{DNS: "b:1", Protocol: "http", HTTPVersion: "3"}), "services.echo.http_version"},
		{"a health path that is none", service("echo", Service{DNS: "b:1", Protocol: "http", HealthPath: "healthz"}), "services.echo.health_path"},
		{"a health path for gRPC", service("echo", Service{DNS: "b:1", Protocol: "grpc", HealthPath: "/healthz"}), "services.echo.protocol"},
		{"neither endpoints nor dns", service("echo", Service{}), "services.echo.endpoints"},
		{"both", service("echo", Service{DNS: "b:1", Endpoints: []string{"b:1"}}), "services.echo.endpoints"},
		{"an endpoint without a port", service("echo", Service{Endpoints: []string{"b:1", "localhost"}}), "services.echo.endpoints"},
		{"an endpoint without a host", service("echo", Service{Endpoints: []string{":9000"}}), "services.echo.endpoints"},
		{"an endpoint of port 0", service("echo", Service{Endpoints: []string{"b:0"}}), "services.echo.endpoints"},
		{"an endpoint whose port has a name", service("echo", Service{Endpoints: []string{"b:http"}}), "services.echo.endpoints"},
		{"an endpoint with a scheme", service("echo", Service{Protocol: "http", Endpoints: []string{"http://b:80"}}), "services.echo.endpoints"},
		{"an endpoint of IPv6", service("echo", Service{Endpoints: []string{"[::1]:9000"}}), ""},
		{"a name without a port", service("echo", Service{DNS: "echo-backend"}), "services.echo.dns"},
		{"a name with a port too many", service("echo", Service{DNS: "echo-backend:70000"}), "services.echo.dns"},
		{"another algorithm", service("echo", Service{DNS: "b:1", Algorithm: "source_hash"}), "services.echo.algorithm"},
		{"bodies without descriptors", service("echo", Service{DNS: "b:1", Body: transcode.Spec{Encoding: "protobuf", Request: "a.B"}}), "services.echo.body.descriptors"},
		{"bodies in another encoding", service("echo", Service{DNS: "b:1", Body: transcode.Spec{Encoding: "xml"}}), "services.echo.body.encoding"},
		{"too many links", service("echo", Service{DNS: "b:1", Links: 65}), "services.echo.links"},
		{"too much time", service("echo", Service{DNS: "b:1", Timeout: most}), "services.echo.timeout"},
	} {
		doc := Default()
		tt.change(&doc)
		err := doc.Validate()
		got := ""
		if ce := (*config.Error)(nil); errors.As(err, &ce) {
			got = ce.Key
		}
		if got != tt.want || (err == nil) != (tt.want == "") {
			t.Errorf("%s: got %v, want an error of %q", tt.name, err, tt.want)
		}
	}
}

func service(name string, s Service) func(*Document) {
	return func(d *Document) { d.Services = map[string]Service{name: s} }
}

func TestValidateFillsInWhatAServiceLeavesOut(t *testing.T) {
	doc := Default()
	service("echo", Service{DNS: "b:1"})(&doc)
	if err := doc.Validate(); err != nil {
		t.Fatal(err)
	}
	want := Service{Protocol: "link", DNS: "b:1", Algorithm: "round_robin", Links: 2, Timeout: Duration(5 * time.Second)}
	if got := doc.Services["echo"]; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParse(t *testing.T) {
	doc, err := Parse([]byte(`{"heartbeat": {"interval": "5s"}, "device_limit": {"rate": 7, "on_limit": "wait"}}`))
	want := Default()
	want.Heartbeat.Interval = Duration(5 * time.Second)
	want.DeviceLimit.Rate, want.DeviceLimit.OnLimit = 7, LimitWait
	if err != nil || !reflect.DeepEqual(doc, want) {
		t.Errorf("got %+v, %v, want the rest as in Default", doc, err)
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Parse(text); err != nil || !reflect.DeepEqual(again, doc) {
		t.Errorf("written and read again: %+v, %v, want the same", again, err)
	}
	for text, want := range map[string]string{
		`{"hartbeat": {}}`:          "hartbeat",
		`{"idle_timeout": "soon"}`:  "must be a duration",
		`{"idle_timeout": "1ms"}`:   "idle_timeout",
		`{"max_in_flight": "many"}`: "max_in_flight",
		`{`:                         "EOF",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", text, err, want)
		}
	}
}
