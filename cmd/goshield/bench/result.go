package bench

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Millis is a duration that reads as milliseconds in JSON.
type Millis time.Duration

// MarshalJSON implements json.Marshaler.
func (m Millis) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(m)/float64(time.Millisecond), 'f', 3, 64), nil
}

// String has three significant digits or so.
func (m Millis) String() string {
	d := time.Duration(m)
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// Quantiles sums up a histogram. In JSON its times are in milliseconds.
type Quantiles struct {
	Count int64  `json:"count"`
	P50   Millis `json:"p50_ms"`
	P90   Millis `json:"p90_ms"`
	P99   Millis `json:"p99_ms"`
	P999  Millis `json:"p999_ms"`
	Max   Millis `json:"max_ms"`
}

func (q Quantiles) String() string {
	return fmt.Sprintf("p50 %v   p90 %v   p99 %v   p99.9 %v   max %v", q.P50, q.P90, q.P99, q.P999, q.Max)
}

// Result is what a run measured.
type Result struct {
	Devices  int            `json:"devices"`
	Connect  ConnectResult  `json:"connect"`
	Requests RequestResult  `json:"requests"`
	Sessions SessionsResult `json:"sessions"`
	// Errors counts, by kind, requests that failed and devices that could not
	// connect. A kind is the gateway's code, or one of connection_lost, timeout, wrong_answer, not_sent,
	// protocol, network, interrupted.
	Errors map[string]int64 `json:"errors"`
	// Samples holds the first message of each kind.
	Samples map[string]string `json:"samples,omitempty"`
}

// ConnectResult is about the time before the load.
type ConnectResult struct {
	Connected  int       `json:"connected"`
	Failed     int       `json:"failed"`
	Seconds    float64   `json:"seconds"`
	PerSecond  float64   `json:"per_second"`
	Latency    Quantiles `json:"latency"`   // of a device: all attempts, to WELCOME
	Handshake  Quantiles `json:"handshake"` // TLS alone, over the whole run
	Enrolled   int64     `json:"enrolled"`
	Resumed    int64     `json:"resumed"` // with a token of an earlier run
	Handshakes int64     `json:"handshakes"`
	TLSResumed int64     `json:"tls_resumed"`
	// HandshakesPerSecond counts TLS handshakes until all were connected.
	HandshakesPerSecond float64 `json:"handshakes_per_second"`
	FailedAttempts      int64   `json:"failed_attempts"` // over the whole run
}

// RequestResult is about the load.
type RequestResult struct {
	Rate      float64 `json:"rate"` // what was asked for
	Sent      int64   `json:"sent"`
	Answered  int64   `json:"answered"`
	Failed    int64   `json:"failed"`
	Wrong     int64   `json:"wrong_answers"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"per_second"` // answered
	// Latency is from when a request was due to its answer, of those that were
	// answered rightly.
	Latency Quantiles `json:"latency"`
	// Lag is how late the generator was: large values mean that this machine, not the
	// gateway, was the limit.
	Lag Quantiles `json:"lag"`
}

// SessionsResult is about what happened to connections and tokens.
type SessionsResult struct {
	Reconnects   int64            `json:"reconnects"`
	EnrolledAnew int64            `json:"enrolled_anew"` // reconnects for which the token was of no use
	Disconnects  map[string]int64 `json:"disconnects"`   // by kind, without those that a gateway asked for
	Rotations    int64            `json:"rotations"`
	// Rotated is how many devices got a new token at least once.
	Rotated int `json:"rotated_devices"`
	// Ended is how many devices gave up: taken over by another connection.
	Ended int `json:"ended"`
}

func (f *fleet) result() *Result {
	errs, disconnects, samples := f.counts.snapshot()
	r := &Result{
		Devices: f.cfg.Devices,
		Connect: ConnectResult{
			Connected: len(f.connected), Failed: int(f.notConnected.Load()),
			Seconds: f.connectTook.Seconds(), PerSecond: perSecond(int64(len(f.connected)), f.connectTook),
			Latency: f.connectTimes.quantiles(), Handshake: f.handshakeTime.quantiles(),
			Enrolled: f.enrolled.Load(), Resumed: f.resumed.Load(),
			Handshakes: f.handshakes.Load(), TLSResumed: f.tlsResumed.Load(),
			HandshakesPerSecond: perSecond(f.handshakesBefore, f.connectTook),
			FailedAttempts:      f.failedDials.Load(),
		},
		Requests: RequestResult{
			Rate: f.cfg.Rate, Sent: f.sent.Load(), Answered: f.answered.Load(), Failed: f.failed.Load(), Wrong: f.wrong.Load(),
			Seconds: f.loadTook.Seconds(), PerSecond: perSecond(f.answered.Load(), f.loadTook),
			Latency: f.latency.quantiles(), Lag: f.lag.quantiles(),
		},
		Sessions: SessionsResult{
			Reconnects: f.reconnects.Load(), EnrolledAnew: f.enrolledAnew.Load(), Disconnects: disconnects,
			Rotations: f.rotations.Load(), Rotated: int(f.rotated.Load()),
		},
		Errors:  errs,
		Samples: samples,
	}
	for _, d := range f.connected {
		if d.client.Err() != nil {
			r.Sessions.Ended++
		}
	}
	return r
}

func perSecond(n int64, took time.Duration) float64 {
	if took <= 0 {
		return 0
	}
	return float64(n) / took.Seconds()
}

// Err is what went wrong, in a sentence; nil if every device connected and every
// request was answered rightly.
func (r *Result) Err() error {
	var faults []string
	if r.Connect.Failed > 0 {
		faults = append(faults, fmt.Sprintf("%d of %s could not connect", r.Connect.Failed, plural(int64(r.Devices), "device")))
	}
	if r.Requests.Failed > 0 {
		all := r.Requests.Answered + r.Requests.Failed
		faults = append(faults, fmt.Sprintf("%d of %s failed", r.Requests.Failed, plural(all, "request")))
	}
	if r.Sessions.Ended > 0 {
		faults = append(faults, plural(int64(r.Sessions.Ended), "device")+" lost the connection for good")
	}
	if len(faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(faults, ", "))
}

// WriteText writes the summary for people.
func (r *Result) WriteText(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	c, q, s := &r.Connect, &r.Requests, &r.Sessions
	line("devices", "%d of %d connected in %.2f s: %.0f a second, %.0f TLS handshakes a second",
		c.Connected, r.Devices, c.Seconds, c.PerSecond, c.HandshakesPerSecond)
	line("  connect", "%v", c.Latency)
	if c.Handshake.Count > 0 {
		line("  TLS", "%v", c.Handshake)
	}
	line("  tokens", "%d enrolled, %d resumed", c.Enrolled, c.Resumed)
	if q.Rate > 0 {
		line("requests", "%d sent in %.2f s, %d answered: %.0f a second of %.0f due", q.Sent, q.Seconds, q.Answered, q.PerSecond, q.Rate)
		line("  latency", "%v", q.Latency)
		line("  lag", "%v", q.Lag)
	}
	line("sessions", "%s, %d enrolled anew; %s on %s", plural(s.Reconnects, "reconnect"), s.EnrolledAnew,
		plural(s.Rotations, "rotation"), plural(int64(s.Rotated), "device"))
	writeKinds(&b, "disconnects", s.Disconnects, r.Samples)
	if len(r.Errors) == 0 {
		line("errors", "none")
	} else {
		writeKinds(&b, "errors", r.Errors, r.Samples)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeKinds writes counts by kind, the most frequent first, with a sample of
// each.
func writeKinds(b *strings.Builder, name string, byKind map[string]int64, samples map[string]string) {
	if len(byKind) == 0 {
		return
	}
	fmt.Fprintf(b, "%-12s %d\n", name, errorTotal(byKind))
	kinds := make([]string, 0, len(byKind))
	for kind := range byKind {
		kinds = append(kinds, kind)
	}
	slices.SortFunc(kinds, func(a, b string) int {
		if byKind[a] != byKind[b] {
			return int(byKind[b] - byKind[a])
		}
		return strings.Compare(a, b)
	})
	for _, kind := range kinds {
		fmt.Fprintf(b, "  %-20s %8d   %s\n", kind, byKind[kind], samples[kind])
	}
}
