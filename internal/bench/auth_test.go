//go:build linux

package main

import (
	"strings"
	"testing"
	"time"
)

func TestReadCSV(t *testing.T) {
	head := `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"` + "\n"
	m := measurement{Done: 5000}
	// The name is the command, and that may hold anything.
	err := readCSV(head+`"EVALSHA x "," y`+"\n"+`","2500.00","1.500","0.500","1.250","4.000","7.500","9.000"`+"\n", &m)
	if err != nil {
		t.Fatal(err)
	}
	if m.Elapsed != 2*time.Second || m.P50 != 1250*time.Microsecond || m.P99 != 7500*time.Microsecond || m.rate() != 2500 {
		t.Errorf("got %+v, want 2500 a second, p50 1.25 ms, p99 7.5 ms", m)
	}
	for _, broken := range []string{"", "Error: Server closed the connection", head, `"x","0.00","1","1","1","1","1","1"`} {
		if err := readCSV(broken, &measurement{Done: 1}); err == nil {
			t.Errorf("%q was read", broken)
		}
	}
}

// Costs of the fewest and the most devices are compared, as far as they were measured.
func TestFlatness(t *testing.T) {
	cost := func(d time.Duration) measurement { return measurement{Done: 1, Elapsed: 1, CPU: usage{User: d}} }
	opt := options{field: tokenKeepers}
	at := func(devices int, verify time.Duration, rotate *measurement) *setting[keeping] {
		return &setting[keeping]{Devices: devices, Rounds: map[string][]keeping{authName: {{Verify: cost(verify), Rotate: rotate}}}}
	}
	few := at(10, 40*time.Microsecond, nil)
	if got := flatness([]*setting[keeping]{few}, opt); !strings.Contains(got, "| verify ") || strings.Contains(got, "| rotate ") {
		t.Errorf("no rotation was measured: got\n%s", got)
	}
	rotate := cost(70 * time.Microsecond)
	got := flatness([]*setting[keeping]{few, at(1000, 60*time.Microsecond, &rotate)}, opt)
	for _, want := range []string{"40.0 at 10 |  60.0 at 1000 |  1.50 | ≤ 1.20: missed", "70.0 at 1000 | 70.0 at 1000 |  1.00 |    ≤ 1.20: met"} {
		if !strings.Contains(strings.Join(strings.Fields(got), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestUnquoteAll(t *testing.T) {
	got, err := unquoteAll(`"evalsha" "a b" "" "\x00\xff\"\\\r\n\a"`)
	if want := "evalsha|a b||\x00\xff\"\\\r\n\a"; err != nil || strings.Join(got, "|") != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, broken := range []string{`evalsha`, `"a`, `"a""b" c`} {
		if _, err := unquoteAll(broken); err == nil {
			t.Errorf("%s was read", broken)
		}
	}
}

func TestAnswerLength(t *testing.T) {
	const whole = "HTTP/1.1 200 OK\r\nContent-Type: x\r\nContent-Length: 2\r\n\r\n{}"
	for i := range whole {
		want := 0 // before the head is complete
		if i >= len(whole)-2 {
			want = len(whole)
		}
		if got, err := answerLength([]byte(whole[:i])); got != want || err != nil {
			t.Errorf("after %d bytes %d, %v, want %d", i, got, err, want)
		}
	}
	for _, broken := range []string{"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nDate: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"} {
		if _, err := answerLength([]byte(broken)); err == nil {
			t.Errorf("%q was taken", broken)
		}
	}
}

// Every device has its turn, and none is asked about by two connections at once.
func TestDevicesTakeTurns(t *testing.T) {
	all := &callers{devices: 10, each: make([]*caller, 3)}
	seen := map[string]int{}
	for i := range all.each {
		c := &caller{all: all, device: i, number: make([]byte, numberDigits)}
		all.each[i] = c
		for range 10 {
			c.turn()
			if owner, ok := seen[string(c.number)]; ok && owner != i {
				t.Errorf("device %s is that of connections %d and %d", c.number, owner, i)
			}
			seen[string(c.number)] = i
		}
	}
	if len(seen) != 10 || seen[deviceNumber(9)] != 0 {
		t.Errorf("got %v, want all of 10 devices", seen)
	}
}
