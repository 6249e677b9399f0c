package health

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errSick = errors.New("sick")

// script is a probe that answers from a list, one letter a probe: "+" well,
// "-" sick, "." hangs until its deadline. Its last letter is repeated.
type script struct {
	mu      sync.Mutex
	letters string
	starts  []time.Duration
	began   time.Time
}

func (s *script) probe(ctx context.Context) error {
	s.mu.Lock()
	s.starts = append(s.starts, time.Since(s.began))
	letter := s.letters[0]
	if len(s.letters) > 1 {
		s.letters = s.letters[1:]
	}
	s.mu.Unlock()
	switch letter {
	case '+':
		return nil
	case '-':
		return errSick
	}
	<-ctx.Done()
	return ctx.Err()
}

var rule = Rule{Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3}

func TestMonitorStates(t *testing.T) {
	for _, tt := range []struct {
		name   string
		probes string
		want   []string // state and reason of each change
	}{
		{"a new target enters on its first success", "+", []string{"up: its first probe succeeded"}},
		{"also after some failures", "--+", []string{"up: its first probe succeeded"}},
		{"one that does not come up is down after three", "----", []string{"down: sick"}},
		{"but still enters on its first success", "-----+", []string{"down: sick", "up: its first probe succeeded"}},
		{"two failures are forgiven", "+--+--+--+", []string{"up: its first probe succeeded"}},
		{"three in a row are not", "+---", []string{"up: its first probe succeeded", "down: sick"}},
		{"a hanging probe fails", "+...", []string{"up: its first probe succeeded", "down: no answer within 500ms"}},
		{"one success does not bring it back", "+---+-+-+-", []string{"up: its first probe succeeded", "down: sick"}},
		{"two in a row do", "+---++", []string{"up: its first probe succeeded", "down: sick", "up: 2 probes in a row succeeded"}},
		{"again and again", "+---++---++", []string{
			"up: its first probe succeeded", "down: sick", "up: 2 probes in a row succeeded", "down: sick", "up: 2 probes in a row succeeded",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []string
				s := &script{letters: tt.probes, began: time.Now()}
				m := Start(s.probe, rule, func(c Change) { got = append(got, fmt.Sprintf("%s: %s", c.To, c.Reason)) })
				time.Sleep(time.Duration(len(tt.probes)+2) * rule.Interval * 11 / 10)
				m.Stop()
				if fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("changes = %q, want %q", got, tt.want)
				}
				if st := m.Status(); len(got) > 0 && fmt.Sprintf("%s: %s", st.State, st.Reason) != got[len(got)-1] {
					t.Errorf("status = %s: %s, want %s", st.State, st.Reason, got[len(got)-1])
				}
			})
		})
	}
}

func TestMonitorStartingSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{letters: "-"}
		m := Start(s.probe, rule, nil)
		defer m.Stop()
		synctest.Wait()
		if st := m.Status(); st.State != Starting || st.Reason != "sick" {
			t.Errorf("after one failure: %s: %s, want starting: sick", st.State, st.Reason)
		}
	})
}

// The interval runs from start to start, whether probes answer or hang, with a
// tenth of jitter.
func TestMonitorInterval(t *testing.T) {
	for _, letters := range []string{"+", "."} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{letters: letters, began: time.Now()}
			m := Start(s.probe, rule, nil)
			time.Sleep(60 * time.Second)
			m.Stop()
			if s.starts[0] != 0 {
				t.Errorf("%q: first probe after %s, want at once", letters, s.starts[0])
			}
			same := true
			for i := 1; i < len(s.starts); i++ {
				gap := s.starts[i] - s.starts[i-1]
				if gap < 900*time.Millisecond || gap > 1100*time.Millisecond {
					t.Errorf("%q: gap %s, want 1s ± 10 %%", letters, gap)
				}
				same = same && gap == s.starts[1]-s.starts[0]
			}
			if same {
				t.Errorf("%q: all gaps are the same: no jitter", letters)
			}
		})
	}
}

func TestMonitorStopInterruptsProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{letters: "."}
		m := Start(s.probe, Rule{Interval: time.Hour, Timeout: time.Hour, Rise: 1, Fall: 1}, func(c Change) {
			t.Errorf("change %v after Stop", c)
		})
		synctest.Wait()
		start := time.Now()
		m.Stop()
		m.Stop()
		if took := time.Since(start); took != 0 {
			t.Errorf("Stop took %s, want none", took)
		}
	})
}

func TestEjector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // of got and start
		var got []string
		start := time.Now()
		e := NewEjector(3, func(ejected bool, reason string) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprintf("%s %t %s", time.Since(start), ejected, reason))
		})
		defer e.Stop()
		want := func(lines ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(got) != fmt.Sprint(lines) {
				t.Errorf("changes:\n got %q\nwant %q", got, lines)
			}
			got, start = nil, time.Now()
		}
		e.Failed(errSick)
		e.Failed(errSick)
		e.Succeeded()
		e.Failed(errSick)
		e.Failed(errSick)
		want()
		e.Failed(errSick)
		e.Failed(errSick) // under way when it was ejected
		want("0s true 3 failures in a row, out for 5s: sick")
		time.Sleep(5 * time.Second)
		want("5s false its ejection is over")
		e.Failed(errSick) // not cured: one is enough
		time.Sleep(10 * time.Second)
		want("0s true 3 failures in a row, out for 10s: sick", "10s false its ejection is over")
		e.Failed(errSick)
		e.Pardon("a probe succeeded")
		e.Pardon("twice changes nothing")
		if e.Ejected() {
			t.Error("ejected after Pardon")
		}
		want("0s true 3 failures in a row, out for 20s: sick", "0s false a probe succeeded")
		e.Succeeded()
		e.Failed(errSick)
		e.Failed(errSick)
		want() // cured: it takes three again
		e.Failed(errSick)
		want("0s true 3 failures in a row, out for 40s: sick")
		time.Sleep(time.Minute)
		e.Failed(errSick)
		time.Sleep(30 * time.Second)
		if !e.Ejected() {
			t.Error("not ejected half a minute into the longest ejection")
		}
		time.Sleep(30 * time.Second)
		want("40s false its ejection is over", "1m0s true 3 failures in a row, out for 1m0s: sick", "2m0s false its ejection is over")
		time.Sleep(2 * time.Minute)
		e.Failed(errSick)
		time.Sleep(5 * time.Second)
		want("2m0s true 3 failures in a row, out for 5s: sick", "2m5s false its ejection is over")
		e.Failed(errSick)
		want("0s true 3 failures in a row, out for 10s: sick")
		e.Stop()
		time.Sleep(time.Hour)
		want()
	})
}

func TestEjectorNever(t *testing.T) {
	e := NewEjector(0, func(bool, string) { t.Error("changed") })
	for range 100 {
		e.Failed(errSick)
	}
	if e.Ejected() {
		t.Error("ejected, want never")
	}
	e.Stop()
}

// A probe and a rule that are changed hold at once; what is known of the target stays.
func TestMonitorSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		well, sick := &script{letters: "+", began: began}, &script{letters: "-", began: began}
		var changes []string
		m := Start(well.probe, Rule{Interval: time.Hour, Timeout: time.Second, Rise: 1, Fall: 1}, func(c Change) {
			changes = append(changes, fmt.Sprintf("%s after %s", c.To, time.Since(began).Round(time.Second)))
		})
		time.Sleep(time.Minute)
		m.Set(sick.probe, Rule{Interval: 10 * time.Second, Timeout: time.Second, Rise: 1, Fall: 4})
		if got := m.Status().State; got != Up {
			t.Errorf("state = %s, want up until the new probes speak against it", got)
		}
		time.Sleep(time.Minute)
		m.Stop()
		if len(well.starts) != 1 || len(sick.starts) < 5 || sick.starts[0] != time.Minute {
			t.Errorf("probes before: %v, after: %v; want one, then others from a minute on", well.starts, sick.starts)
		}
		if len(changes) != 2 || changes[0] != "up after 0s" {
			t.Errorf("changes = %q, want up, and down with the fourth of the new probes", changes)
		}
		if got := m.Status().Since.Sub(began); got < 84*time.Second || got > 96*time.Second {
			t.Errorf("down after %s, want about 90s: three of the new intervals", got)
		}
	})
}
