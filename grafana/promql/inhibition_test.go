package promql

// What Alertmanager silences, asked of a real one: alerts are given to it as Prometheus gives them, and it says which it
// holds back because of which.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestInhibition: what is a mere consequence is silenced, and nothing else is.
func TestInhibition(t *testing.T) {
	am := startAlertmanager(t)
	for _, tt := range []struct {
		name             string
		causes           []string // what fires beside: alertname label=value…
		silenced, spoken []string
	}{
		{
			"the page says what the ticket would",
			[]string{"GatewaysUnhealthy severity=critical job=lb instance=lb-a"},
			[]string{"GatewaysUnhealthy severity=warning job=lb instance=lb-a"},
			[]string{"GatewaysUnhealthy severity=warning job=lb instance=lb-b", "BackendsUnhealthy severity=warning service=echo"},
		}, {
			"all of a part are gone",
			[]string{"PartMissing severity=critical job=gateway"},
			[]string{
				"PartDown severity=warning job=gateway instance=x", "ReplicaLost severity=warning job=gateway",
				"GatewaysUnhealthy severity=critical job=lb instance=lb-a", "ErrorBudgetBurn severity=critical service=echo",
				"ConnectionsRefused severity=warning job=lb instance=lb-a reason=no_upstream",
			},
			[]string{
				"PartDown severity=warning job=auth-service instance=x", "ReplicaLost severity=warning job=echo-backend",
				"Degraded severity=warning job=gateway dependency=auth", "TokenReused severity=critical", "Watchdog severity=none",
			},
		}, {
			"one gateway is down",
			[]string{"PartDown severity=warning job=gateway instance=x"},
			[]string{"GatewaysUnhealthy severity=warning job=lb instance=lb-a"},
			[]string{"GatewaysUnhealthy severity=critical job=lb instance=lb-a", "ErrorBudgetBurn severity=critical service=echo"},
		}, {
			"no load balancer",
			[]string{"PartMissing severity=critical job=lb"},
			[]string{"VIPWithoutMaster severity=critical", "PartDown severity=warning job=lb instance=lb-a"},
			[]string{"VIPWithTwoMasters severity=critical", "PartDown severity=warning job=gateway instance=x"},
		}, {
			"a service without its backends",
			[]string{"BackendsUnhealthy severity=critical service=echo"},
			[]string{"ErrorBudgetBurn severity=critical service=echo", "LatencyBudgetBurn severity=warning service=echo"},
			[]string{"ErrorBudgetBurn severity=critical service=orders"},
		}, {
			"no auth-service",
			[]string{"PartMissing severity=critical job=auth-service"},
			[]string{"Degraded severity=warning job=gateway instance=x dependency=auth"},
			[]string{"Degraded severity=warning job=gateway instance=x dependency=redis"},
		}, {
			"no Redis",
			[]string{"PartMissing severity=critical job=redis"},
			[]string{
				"Degraded severity=warning job=gateway dependency=redis", "Degraded severity=warning job=gateway dependency=auth",
				"PartDown severity=warning job=redis instance=redis-1", "WritesUnconfirmed severity=warning operation=rotate",
				"RedisReplicationBroken severity=warning job=redis instance=redis-4",
			},
			[]string{"Degraded severity=warning job=lb dependency=upstreams", "AuthFailures severity=warning"},
		}, {
			"one node of Redis is down", // and whatever is wrong with the others is told
			[]string{"PartDown severity=warning job=redis instance=redis-1"},
			nil,
			[]string{
				"RedisReplicationBroken severity=warning job=redis instance=redis-5", "RedisPrimaryWithoutReplica severity=warning job=redis instance=redis-2",
				"RedisMemoryHigh severity=warning job=redis instance=redis-2",
			},
		}, {
			"one node of Redis is down, and each primary has its replica",
			[]string{"PartDown severity=warning job=redis instance=redis-1"},
			nil,
			[]string{"WritesUnconfirmed severity=warning operation=rotate"},
		}, {
			"slots without a primary",
			[]string{"RedisClusterBroken severity=critical job=redis"},
			[]string{"RedisReplicationBroken severity=warning job=redis instance=redis-4", "Degraded severity=warning job=auth-service dependency=redis"},
			[]string{"RedisPrimaryWithoutReplica severity=warning job=redis instance=redis-2", "PartDown severity=warning job=redis instance=redis-1"},
		}, {
			"a primary without a replica",
			[]string{"RedisPrimaryWithoutReplica severity=warning job=redis instance=redis-2"},
			[]string{"WritesUnconfirmed severity=warning operation=rotate"},
			[]string{"RedisReplicationBroken severity=warning job=redis instance=redis-5"},
		}, {
			"out of descriptors",
			[]string{"FileDescriptorsLow severity=warning job=lb instance=lb-a"},
			[]string{"AcceptFailing severity=warning job=lb instance=lb-a"},
			[]string{"AcceptFailing severity=warning job=lb instance=lb-b"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := slices.Concat(tt.causes, tt.silenced, tt.spoken)
			known := alerts(t)
			for _, a := range all {
				if name, _, _ := strings.Cut(a, " "); !slices.Contains(known, name) {
					t.Errorf("there is no alert %s", name)
				}
			}
			now := time.Now()
			am.post(t, all, now.Add(time.Hour))
			// It takes alerts in as they come: when the last one is silenced, it knows the others.
			cause, consequence := "PartMissing severity=critical job=last", "PartDown severity=warning job=last"
			am.post(t, []string{cause, consequence}, now.Add(time.Hour))
			held := am.heldBack(t, labelsOf(consequence))
			am.post(t, append(all, cause, consequence), now) // they are over
			for _, a := range tt.silenced {
				if !held[key(labelsOf(a))] {
					t.Errorf("%s is told", a)
				}
			}
			for _, a := range slices.Concat(tt.causes, tt.spoken) {
				if held[key(labelsOf(a))] {
					t.Errorf("%s is silenced", a)
				}
			}
		})
	}
}

// labelsOf reads alertname label=value…
func labelsOf(alert string) map[string]string {
	labels := map[string]string{}
	for i, word := range strings.Fields(alert) {
		if name, value, found := strings.Cut(word, "="); found && i > 0 {
			labels[name] = value
		} else {
			labels["alertname"] = word
		}
	}
	return labels
}

func key(labels map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(&b, "%s=%s ", name, labels[name])
	}
	return b.String()
}

// realAlertmanager is one that runs alertmanager.yml.
type realAlertmanager struct{ url string }

func startAlertmanager(t *testing.T) realAlertmanager {
	t.Helper()
	program, err := exec.LookPath("prometheus-alertmanager")
	if err != nil {
		t.Fatal("Alertmanager is not installed: Debian's package prometheus-alertmanager has it, and scripts/test installs it")
	}
	cmd := exec.Command(program, "--config.file="+filepath.Join(root, "alertmanager/alertmanager.yml"), "--storage.path="+t.TempDir(),
		"--web.listen-address=127.0.0.1:0", "--cluster.listen-address=")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_, _ = io.Copy(io.Discard, log)
		_ = cmd.Wait()
	})
	listening := regexp.MustCompile(`msg="Listening on" address=(\S+)`)
	var said []string
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			go func() { _, _ = io.Copy(io.Discard, log) }() // ends with the process
			return realAlertmanager{"http://" + m[1] + "/api/v2/alerts"}
		}
		said = append(said, lines.Text())
	}
	t.Fatalf("Alertmanager did not start (%v):\n%s", lines.Err(), strings.Join(said, "\n"))
	return realAlertmanager{}
}

// post gives it alerts that fire until ends.
func (am realAlertmanager) post(t *testing.T, alerts []string, ends time.Time) {
	t.Helper()
	type alert struct {
		Labels   map[string]string `json:"labels"`
		StartsAt time.Time         `json:"startsAt"`
		EndsAt   time.Time         `json:"endsAt"`
	}
	var all []alert
	for _, a := range alerts {
		all = append(all, alert{labelsOf(a), ends.Add(-2 * time.Hour), ends})
	}
	body, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(am.url, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("Alertmanager refuses alerts: %s: %s", resp.Status, text)
	}
}

// heldBack waits until it has silenced the alert with the labels last, and returns all that it has.
func (am realAlertmanager) heldBack(t *testing.T, last map[string]string) map[string]bool {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		held, err := am.inhibited()
		if err == nil && held[key(last)] {
			// Others may have been looked at a moment before.
			if held, err = am.inhibited(); err == nil {
				return held
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("within a minute nothing silenced %v: %v, %v", last, held, err)
		}
	}
}

func (am realAlertmanager) inhibited() (map[string]bool, error) {
	resp, err := http.Get(am.url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var all []struct {
		Labels map[string]string
		Status struct{ InhibitedBy []string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		return nil, errors.Join(errors.New(resp.Status), err)
	}
	held := map[string]bool{}
	for _, a := range all {
		if len(a.Status.InhibitedBy) > 0 {
			held[key(a.Labels)] = true
		}
	}
	return held, nil
}
