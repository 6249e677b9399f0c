package stack

import (
	"context"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/transcode"
	"github.com/goshield/goshield/internal/transcode/transcodetest"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// Devices of both encodings, and MQTT, reach services that speak one of them only, over each backend protocol. The echo
// backends send back what they got, so a device gets its own message, as the gateway writes it.
func TestBodiesAreConvertedForEveryBackend(t *testing.T) {
	doc := dynamic.Default()
	doc.DeviceLimit.Rate = 0
	doc.Services = map[string]dynamic.Service{}
	descriptors := transcodetest.Descriptors(t)
	for name, protocol := range map[string]string{"echo": "link", "echo-http": "http", "echo-grpc": "grpc"} {
		doc.Services[name] = dynamic.Service{Protocol: protocol, Body: transcode.Spec{
			Encoding: transcode.Protobuf, Descriptors: descriptors, Request: "meter.Sample", Response: "meter.Sample",
		}}
	}
	f := start(t, doc, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, tt := range []struct {
		speaker    int
		body, want string
		bad        string
	}{
		{0, `{ "watts" : "7" }`, `{"watts":7}`, `{"watts":"x"}`},
		{1, "\x08\x0e", "\x08\x0e", ""},
		{2, `{"watts":7}`, `{"watts":7}`, `{"volts":1}`},
		{4, `{"watts":-1}`, `{"watts":-1}`, `{"watts":[]}`},
		{5, `{"watts":-1}`, `{"watts":-1}`, `[]`},
	} {
		sp := speakers[tt.speaker]
		m := &matrixCell{f: f, pushed: make(chan string, 1)}
		d, err := sp.connect(ctx, m, f.device(t, client.MemoryStore()))
		if err != nil {
			t.Fatalf("%s: %v", sp.name, err)
		}
		for _, service := range []string{"echo", "echo-http", "echo-grpc"} {
			if got, err := d.ask(ctx, service, []byte(tt.body)); err != nil || string(got) != tt.want {
				t.Errorf("%s, %s: got %q, %v; want %q", sp.name, service, got, err, tt.want)
			}
			if tt.bad == "" {
				continue
			}
			if _, err := d.ask(ctx, service, []byte(tt.bad)); wantError(err, wire.CodeBadFrame) != nil {
				t.Errorf("%s, %s, %s: got %v, want %s", sp.name, service, tt.bad, err, wire.CodeBadFrame)
			}
		}
		d.close()
	}
}
