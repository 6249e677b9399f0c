package dynamic

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/config"
)

// withServices has services whose names have dots.
func withServices(t *testing.T) Document {
	t.Helper()
	doc, err := Parse([]byte(`{"services": {
		"echo": {"endpoints": ["a:1", "b:2"]}, "pay.v2": {"dns": "pay:9000", "links": 4}, "pay.timeout": {"dns": "other:1"}
	}}`))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestGet(t *testing.T) {
	doc := withServices(t)
	for path, want := range map[string]any{
		"heartbeat":               doc.Heartbeat,
		"heartbeat.interval":      Duration(20 * time.Second),
		"device_limit.rate":       50.0,
		"device_limit.bytes":      Bucket{},
		"services":                doc.Services,
		"services.echo":           doc.Services["echo"],
		"services.echo.endpoints": []string{"a:1", "b:2"},
		"services.pay.v2.links":   4,
		"services.pay.timeout":    doc.Services["pay.timeout"], // a name, before it is a key
	} {
		if got, err := doc.Get(path); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, %v, want %v", path, got, err, want)
		}
	}
	for _, path := range []string{"", "heart", "heartbeat.beat", "services.none", "services.none.links", "services.echo.link", "services."} {
		var keyError *config.Error
		if got, err := doc.Get(path); !errors.As(err, &keyError) || keyError.Key != path {
			t.Errorf("%s: got %v, %v, want an error of that key", path, got, err)
		}
	}
}

func TestSet(t *testing.T) {
	for _, tt := range []struct {
		path, text string
		change     func(d *Document) // what must differ from before
	}{
		{"heartbeat.interval", "30s", func(d *Document) { d.Heartbeat.Interval = Duration(30 * time.Second) }},
		{"heartbeat", `{"missed": 5}`, func(d *Document) { d.Heartbeat.Missed = 5 }},
		{"device_limit.on_limit", "wait", func(d *Document) { d.DeviceLimit.OnLimit = LimitWait }},
		{"max_in_flight", "7", func(d *Document) { d.MaxInFlight = 7 }},
		{"services.echo.idempotent", "true", change("echo", func(s *Service) { s.Idempotent = true })},
		{"services.echo.endpoints", "c:3,d:4", change("echo", func(s *Service) { s.Endpoints = []string{"c:3", "d:4"} })},
		{"services.echo.limit", `{"rate": 5}`, change("echo", func(s *Service) { s.Limit = Bucket{Rate: 5, Burst: 5} })},
		{"services.pay.v2.limit.rate", "0.1", change("pay.v2", func(s *Service) { s.Limit = Bucket{Rate: 0.1, Burst: 1} })},
		{"services.pay.v2.timeout", "1s", change("pay.v2", func(s *Service) { s.Timeout = Duration(time.Second) })},
		{"services.echo", `{"dns": "e:1"}`, change("echo", func(s *Service) { s.Endpoints, s.DNS = nil, "e:1" })},
		{"services.new", `{dns: "n:1"}`, func(d *Document) {
			d.Services["new"] = Service{Protocol: "link", DNS: "n:1", Algorithm: "round_robin", Links: 2, Timeout: Duration(5 * time.Second)}
		}},
		{"services.echo", "null", func(d *Document) { delete(d.Services, "echo") }},
		{"services", "{}", func(d *Document) { d.Services = map[string]Service{} }},
	} {
		doc, want := withServices(t), withServices(t)
		tt.change(&want)
		got, err := doc.Set(tt.path, tt.text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s to %s:\n got %+v, %v\nwant %+v", tt.path, tt.text, got, err, want)
		}
		if before := withServices(t); !reflect.DeepEqual(doc, before) {
			t.Errorf("%s to %s changed the document that it was called on", tt.path, tt.text)
		}
	}
}

func change(name string, f func(s *Service)) func(*Document) {
	return func(d *Document) {
		s := d.Services[name]
		f(&s)
		d.Services[name] = s
	}
}

// What cannot be set is refused with the key's name.
func TestSetNamesTheKey(t *testing.T) {
	for _, tt := range []struct{ path, text, key, says string }{
		{"heartbeat.interval", "soon", "heartbeat.interval", "must be a duration"},
		{"heartbeat.interval", "1ms", "heartbeat.interval", "10ms"},
		{"heartbeat", `{"beat": 1}`, "heartbeat", "unknown key beat"},
		{"hartbeat", "1", "hartbeat", "no such key"},
		{"services.echo.links", "many", "services.echo.links", "whole number"},
		{"services.echo.links", "65", "services.echo.links", "from 1 to 64"},
		{"services.echo.lnks", "2", "services.echo.lnks", "no such key"},
		{"services.echo.limit.rate", "-1", "services.echo.limit.rate", "from 0"},
		{"services.echo.limit.rate", ".inf", "services.echo.limit.rate", ""},
		{"services.echo.limit", "{rate: 1, burst: 0.5}", "services.echo.limit.burst", "from 1"},
		{"services.none.links", "2", "services.none.endpoints", "name endpoints"},
		{"services.none", "null", "services.none", "no such service"},
		{"services.new", `{}`, "services.new.endpoints", "name endpoints"},
	} {
		doc := withServices(t)
		_, err := doc.Set(tt.path, tt.text)
		var keyError *config.Error
		if !errors.As(err, &keyError) || keyError.Key != tt.key || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s to %s: got %v, want an error of %s with %q", tt.path, tt.text, err, tt.key, tt.says)
		}
	}
}

func TestDiff(t *testing.T) {
	from, to := withServices(t), withServices(t)
	to.Heartbeat.Interval = Duration(30 * time.Second)
	change("echo", func(s *Service) { s.Endpoints = []string{"c:3"} })(&to)
	change("pay.v2", func(s *Service) { s.DNS, s.Endpoints = "", []string{"p:1"} })(&to)
	want := []Change{
		{"heartbeat.interval", "20s", "30s"},
		{"services.echo.endpoints", `["a:1","b:2"]`, `["c:3"]`},
		{"services.pay.v2.dns", "pay:9000", ""},
		{"services.pay.v2.endpoints", "", `["p:1"]`},
	}
	if got := Diff(from, to); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if got := Diff(from, withServices(t)); len(got) != 0 {
		t.Errorf("of equal documents: %+v, want nothing", got)
	}
	delete(to.Services, "echo")
	for _, c := range Diff(from, to) {
		if strings.HasPrefix(c.Path, "services.echo.") && (c.Old == "" || c.New != "") {
			t.Errorf("a service that was removed: %+v, want old values only", c)
		}
	}
}

// Every change that Diff shows can be made with Set.
func TestDiffAndSetAgree(t *testing.T) {
	from, to := withServices(t), withServices(t)
	to.Token.Grace, to.IdleTimeout = 0, Duration(time.Hour)
	to.DeviceLimit.Rate = 0.5
	change("echo", func(s *Service) { s.Endpoints, s.Idempotent = []string{"x:1", "y:2"}, true })(&to)
	got := from
	for _, c := range Diff(from, to) {
		next, err := got.Set(c.Path, c.New)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		got = next
	}
	if !reflect.DeepEqual(got, to) {
		t.Errorf("got %+v\nwant %+v", got, to)
	}
}

func TestRead(t *testing.T) {
	doc, err := Read(strings.NewReader("heartbeat: {interval: 5s}\nservices:\n  echo: {endpoints: [\"a:1\"]}\n"))
	if err != nil || doc.Heartbeat.Interval.D() != 5*time.Second || doc.Services["echo"].Links != 2 {
		t.Errorf("got %+v, %v, want what the text says on top of the defaults", doc, err)
	}
	if _, err := Read(strings.NewReader("hartbeat: {}")); err == nil || !strings.Contains(err.Error(), "unknown key hartbeat") {
		t.Errorf("an unknown key: %v, want it named", err)
	}
	if _, err := Parse([]byte(`{} {}`)); err == nil {
		t.Error("two documents in one text were read, want an error")
	}
}
