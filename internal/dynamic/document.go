// Package dynamic is the configuration that changes while the fleet runs: one
// JSON document, the same for every gateway, kept in Redis (key goshield:config).
package dynamic

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/transcode"
	"github.com/goshield/goshield/sdk/wire"
)

// Duration is a time.Duration that reads and writes as Go writes it: "20s".
type Duration time.Duration

// D is the duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("must be a duration such as 500ms or 2s, got %q", b)
	}
	*d = Duration(v)
	return nil
}

// Document is the dynamic configuration. A Document in use is never changed:
// a new one replaces it.
type Document struct {
	Heartbeat    Heartbeat          `json:"heartbeat" yaml:"heartbeat"`
	IdleTimeout  Duration           `json:"idle_timeout" yaml:"idle_timeout"`
	Frame        Frame              `json:"frame" yaml:"frame"`
	MaxInFlight  int                `json:"max_in_flight" yaml:"max_in_flight"` // requests of one device
	DeviceLimit  DeviceLimit        `json:"device_limit" yaml:"device_limit"`
	GatewayLimit GatewayLimit       `json:"gateway_limit" yaml:"gateway_limit"`
	Token        Token              `json:"token" yaml:"token"`
	Enrolment    Enrolment          `json:"enrolment" yaml:"enrolment"`
	Services     map[string]Service `json:"services" yaml:"services"`
}

// Heartbeat is how often devices say that they live, and how many beats may be missed.
// Interval 0: no heartbeats are expected.
type Heartbeat struct {
	Interval Duration `json:"interval" yaml:"interval"`
	Missed   int      `json:"missed" yaml:"missed"`
}

// Frame bounds payloads, in bytes.
type Frame struct {
	MaxBytes int `json:"max_bytes" yaml:"max_bytes"`
}

// OnLimit is what happens to a device over its limit.
type OnLimit string

// The ways to limit a device.
const (
	LimitReject OnLimit = "reject" // answer rate_limited
	LimitWait   OnLimit = "wait"   // stop reading until there are tokens
)

// Bucket is a token bucket: Rate a second, Burst at once. Rate 0: no limit.
type Bucket struct {
	Rate  float64 `json:"rate" yaml:"rate"`
	Burst float64 `json:"burst" yaml:"burst"`
}

// DeviceLimit is each device's own bucket of frames, and of payload bytes.
type DeviceLimit struct {
	Bucket  `yaml:",inline"`
	OnLimit OnLimit `json:"on_limit" yaml:"on_limit"`
	Bytes   Bucket  `json:"bytes" yaml:"bytes"`
}

// GatewayLimit bounds one gateway.
type GatewayLimit struct {
	MaxConnections int `json:"max_connections" yaml:"max_connections"`
	MaxHandshakes  int `json:"max_handshakes" yaml:"max_handshakes"` // TLS handshakes in flight
}

// Token is the rules of tokens.
type Token struct {
	TTL               Duration `json:"ttl" yaml:"ttl"`
	RotateProbability float64  `json:"rotate_probability" yaml:"rotate_probability"` // per heartbeat
	Grace             Duration `json:"grace" yaml:"grace"`                           // of a replaced token
	Recheck           Duration `json:"recheck" yaml:"recheck"`                       // how often gateways look for revocations
}

// Enrolment is what a device without a token has to show.
type Enrolment string

// The enrolment modes.
const (
	EnrolOpen      Enrolment = "open"      // any well-formed client_id
	EnrolAllowlist Enrolment = "allowlist" // a registered one
	EnrolKey       Enrolment = "key"       // a proof of the device key
	EnrolMTLS      Enrolment = "mtls"      // a client certificate
)

// Service routes requests of one name to backends.
type Service struct {
	Protocol   string   `json:"protocol" yaml:"protocol"` // link, http or grpc
	Endpoints  []string `json:"endpoints,omitempty" yaml:"endpoints,omitempty"`
	DNS        string   `json:"dns,omitempty" yaml:"dns,omitempty"` // instead of endpoints: every address behind "name:port"
	Algorithm  string   `json:"algorithm" yaml:"algorithm"`
	Links      int      `json:"links" yaml:"links"` // connections per endpoint; link only
	Timeout    Duration `json:"timeout" yaml:"timeout"`
	Idempotent bool     `json:"idempotent" yaml:"idempotent"` // true: one retry on another endpoint
	Limit      Bucket   `json:"limit" yaml:"limit"`           // of requests, over all gateways together

	HTTPVersion string `json:"http_version,omitempty" yaml:"http_version,omitempty"` // "1.1" or "2"; http only
	HealthPath  string `json:"health_path,omitempty" yaml:"health_path,omitempty"`   // what a health check asks for; "": connecting is enough; http only

	Body transcode.Spec `json:"body,omitzero" yaml:"body,omitempty"` // what it speaks, where bodies are converted for it
}

// Default is the document in force where nobody set one.
func Default() Document {
	return Document{
		Heartbeat:    Heartbeat{Interval: Duration(20 * time.Second), Missed: 3},
		IdleTimeout:  Duration(90 * time.Second),
		Frame:        Frame{MaxBytes: wire.DefaultMaxPayload},
		MaxInFlight:  32,
		DeviceLimit:  DeviceLimit{Bucket: Bucket{Rate: 50, Burst: 100}, OnLimit: LimitReject},
		GatewayLimit: GatewayLimit{MaxConnections: 50000, MaxHandshakes: 256},
		Token:        Token{TTL: Duration(24 * time.Hour), RotateProbability: 0.05, Grace: Duration(10 * time.Second), Recheck: Duration(5 * time.Second)},
		Enrolment:    EnrolOpen,
		Services:     map[string]Service{},
	}
}

// Parse reads a document on top of Default, refuses keys that nobody knows, and validates
// it.
func Parse(data []byte) (Document, error) {
	doc := Default()
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return Document{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Document{}, errors.New("there is something behind the document")
	}
	return doc, doc.Validate()
}

// Upper bounds: beyond them a product or sum of durations would overflow, or mean nothing.
const (
	maxSilence   = 30 * 24 * time.Hour
	maxMissed    = 1000
	maxTTL       = 10 * 365 * 24 * time.Hour
	maxRecheck   = 30 * time.Second // revocations need not be found in the stream for much longer
	maxOfGateway = 10_000_000
	maxRate      = 1e9 // a second
)

const wantRate = "must be from 0 to 1000000000"

// isRate is false for what is no number, too.
func isRate(r float64) bool { return r >= 0 && r <= maxRate }

func within(d Duration, least, most time.Duration) bool { return d.D() >= least && d.D() <= most }

var serviceName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`)

// Validate checks every value, and fills what a service left out. The error is a
// *config.Error that names the key.
func (d *Document) Validate() error {
	checks := []struct {
		key  string
		ok   bool
		want string
	}{
		{"heartbeat.interval", d.Heartbeat.Interval == 0 || within(d.Heartbeat.Interval, 10*time.Millisecond, maxSilence), "must be 0, or from 10ms to 720h"},
		{"heartbeat.missed", d.Heartbeat.Missed >= 1 && d.Heartbeat.Missed <= maxMissed, "must be from 1 to 1000"},
		{"idle_timeout", within(d.IdleTimeout, 10*time.Millisecond, maxSilence), "must be from 10ms to 720h"},
		{"frame.max_bytes", d.Frame.MaxBytes >= 256 && d.Frame.MaxBytes <= wire.MaxPayload, "must be from 256 to 65535"},
		{"max_in_flight", d.MaxInFlight >= 1 && d.MaxInFlight <= 65536, "must be from 1 to 65536"},
		{"device_limit.rate", isRate(d.DeviceLimit.Rate), wantRate},
		{"device_limit.burst", isRate(d.DeviceLimit.Burst) && (d.DeviceLimit.Rate == 0 || d.DeviceLimit.Burst >= 1), "must be from 1 to 1000000000"},
		{"device_limit.on_limit", d.DeviceLimit.OnLimit == LimitReject || d.DeviceLimit.OnLimit == LimitWait, `must be "reject" or "wait"`},
		{"device_limit.bytes.rate", isRate(d.DeviceLimit.Bytes.Rate), wantRate},
		{"device_limit.bytes.burst", isRate(d.DeviceLimit.Bytes.Burst) && (d.DeviceLimit.Bytes.Rate == 0 || d.DeviceLimit.Bytes.Burst >= float64(d.Frame.MaxBytes)), "must be at least frame.max_bytes"},
		{"gateway_limit.max_connections", d.GatewayLimit.MaxConnections >= 1 && d.GatewayLimit.MaxConnections <= maxOfGateway, "must be from 1 to 10000000"},
		{"gateway_limit.max_handshakes", d.GatewayLimit.MaxHandshakes >= 1 && d.GatewayLimit.MaxHandshakes <= maxOfGateway, "must be from 1 to 10000000"},
		{"token.ttl", within(d.Token.TTL, time.Second, maxTTL), "must be from 1s to 87600h"},
		{"token.rotate_probability", d.Token.RotateProbability >= 0 && d.Token.RotateProbability <= 1, "must be from 0 to 1"},
		{"token.grace", d.Token.Grace >= 0 && d.Token.Grace < d.Token.TTL, "must be from 0 to less than token.ttl"},
		{"token.recheck", within(d.Token.Recheck, 100*time.Millisecond, maxRecheck), "must be from 100ms to 30s"},
		{"enrolment", d.Enrolment == EnrolOpen || d.Enrolment == EnrolAllowlist || d.Enrolment == EnrolKey || d.Enrolment == EnrolMTLS, `must be "open", "allowlist", "key" or "mtls"`},
	}
	for _, c := range checks {
		if !c.ok {
			return config.Errorf(c.key, "%s", c.want)
		}
	}
	names := make([]string, 0, len(d.Services))
	for name := range d.Services {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		s := d.Services[name]
		if err := s.validate(name); err != nil {
			return err
		}
		d.Services[name] = s
	}
	return nil
}

func (s *Service) validate(name string) error {
	key := "services." + name
	if !serviceName.MatchString(name) {
		return config.Errorf("services", "%q is not a service name: letters, digits, '.', '_' and '-', at most 64", name)
	}
	if s.Protocol == "" {
		s.Protocol = "link"
	}
	if s.Algorithm == "" {
		s.Algorithm = "round_robin"
	}
	if s.Links == 0 {
		s.Links = 2
	}
	if s.Timeout == 0 {
		s.Timeout = Duration(5 * time.Second)
	}
	if s.Limit.Burst == 0 && s.Limit.Rate > 0 {
		s.Limit.Burst = max(s.Limit.Rate, 1)
	}
	switch {
	case s.Protocol != "link" && s.Protocol != "http" && s.Protocol != "grpc":
		return config.Errorf(key+".protocol", "must be link, http or grpc, got %q", s.Protocol)
	case s.Protocol != "http" && s.HTTPVersion+s.HealthPath != "":
		return config.Errorf(key+".protocol", "http_version and health_path are for http, got %q", s.Protocol)
	case s.HTTPVersion != "" && s.HTTPVersion != "1.1" && s.HTTPVersion != "2":
		return config.Errorf(key+".http_version", `must be "1.1" or "2", got %q`, s.HTTPVersion)
	case s.HealthPath != "" && !strings.HasPrefix(s.HealthPath, "/"):
		return config.Errorf(key+".health_path", `must begin with "/", got %q`, s.HealthPath)
	case (len(s.Endpoints) == 0) == (s.DNS == ""):
		return config.Errorf(key+".endpoints", "name endpoints, or dns, and not both")
	case s.Algorithm != "round_robin" && s.Algorithm != "least_inflight" && s.Algorithm != "least_response_time":
		return config.Errorf(key+".algorithm", "must be round_robin, least_inflight or least_response_time, got %q", s.Algorithm)
	case s.Links < 1 || s.Links > 64:
		return config.Errorf(key+".links", "must be from 1 to 64, got %d", s.Links)
	case s.Timeout.D() < time.Millisecond || s.Timeout.D() > 10*time.Minute:
		return config.Errorf(key+".timeout", "must be from 1ms to 10m, got %v", s.Timeout.D())
	case !isRate(s.Limit.Rate):
		return config.Errorf(key+".limit.rate", wantRate+", got %v", s.Limit.Rate)
	case !isRate(s.Limit.Burst) || s.Limit.Rate > 0 && s.Limit.Burst < 1:
		return config.Errorf(key+".limit.burst", "must be from 1 to 1000000000, got %v", s.Limit.Burst)
	}
	if err := s.CheckAddresses(key); err != nil {
		return err
	}
	_, err := transcode.New(s.Body)
	if se := (*transcode.SpecError)(nil); errors.As(err, &se) {
		return &config.Error{Key: key + ".body." + se.Field, Err: se.Err}
	}
	return err
}

// CheckAddresses checks where the service's backends are; the error is a *config.Error below key. A name need not
// exist: it is looked up while gateways run.
func (s *Service) CheckAddresses(key string) error {
	if s.DNS != "" {
		if err := checkAddress(s.DNS); err != nil {
			return &config.Error{Key: key + ".dns", Err: err}
		}
	}
	for _, address := range s.Endpoints {
		if err := checkAddress(address); err != nil {
			return &config.Error{Key: key + ".endpoints", Err: err}
		}
	}
	return nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not an address of the form host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q: the port must be a number from 1 to 65535", address)
	}
	return nil
}
