package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/wire"
)

// Load balancers ask a gateway to send devices away: POST /api/shed.

const adminSecret = "0123456789abcdef"

// shedAPI is the server's admin API.
func (r *rig) shedAPI() func(body, bearer string) *httptest.ResponseRecorder {
	r.adminSecret = secret.Static(adminSecret)
	mux := http.NewServeMux()
	r.RegisterAdmin(mux)
	return func(body, bearer string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(http.MethodPost, "/api/shed", strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+bearer)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, req)
		return w
	}
}

// through are devices that came by way of the load balancers 10.0.0.1, 10.0.0.2 and so on, so many by each.
func (r *rig) through(t *testing.T, counts ...int) (devices map[netip.Addr][]*device) {
	t.Helper()
	devices = make(map[netip.Addr][]*device)
	var id byte
	for i, n := range counts {
		lb := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
		for range n {
			id++
			devices[lb] = append(devices[lb], r.enrolled(t, clientID(id)))
			r.table.find(clientID(id)).sock.peer = lb
		}
	}
	return devices
}

// asked is how many of the devices have been sent GOAWAY, and nothing else, since they were last counted.
func asked(t *testing.T, devices []*device) (n int) {
	t.Helper()
	synctest.Wait()
	for _, d := range devices {
		for len(d.frames) > 0 {
			var g wire.Goaway
			d.want(&g)
			if g.Reason != reasonRebalance || g.After != 0 {
				t.Errorf("GOAWAY = %+v, want %q and at once", g, reasonRebalance)
			}
			n++
		}
	}
	return n
}

func TestShedFrom(t *testing.T) {
	for _, tt := range []struct {
		name        string
		connections int
		from        string // JSON; "": not said
		want        [3]int // devices by way of 10.0.0.1, .2 and .3 that are asked
	}{
		{"any, when none is named", 100, ``, [3]int{2, 3, 4}},
		{"any, when the list is empty", 100, `[]`, [3]int{2, 3, 4}},
		{"one", 100, `["10.0.0.2"]`, [3]int{0, 3, 0}},
		{"one, as often as is said", 3, `["10.0.0.3"]`, [3]int{0, 0, 3}},
		{"two", 100, `["10.0.0.1","10.0.0.3"]`, [3]int{2, 0, 4}},
		{"one that nobody came through", 100, `["10.0.0.9"]`, [3]int{}},
		{"one of them is unknown", 100, `["10.0.0.9","10.0.0.1"]`, [3]int{2, 0, 0}},
		{"IPv4 as IPv6", 100, `["::ffff:10.0.0.2"]`, [3]int{0, 3, 0}},
		{"none", 0, `["10.0.0.2"]`, [3]int{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				devices := r.through(t, 2, 3, 4)
				body := fmt.Sprintf(`{"connections":%d}`, tt.connections)
				if tt.from != "" {
					body = fmt.Sprintf(`{"connections":%d,"from":%s}`, tt.connections, tt.from)
				}
				w := r.shedAPI()(body, adminSecret)
				var answer shedAnswer
				want := tt.want[0] + tt.want[1] + tt.want[2]
				if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusAccepted || answer.Shed != want {
					t.Errorf("answer = %d %s, want 202 and %d shed", w.Code, w.Body, want)
				}
				for lb, list := range devices {
					if got, want := asked(t, list), tt.want[lb.As4()[3]-1]; got != want {
						t.Errorf("devices by way of %s that were asked = %d, want %d", lb, got, want)
					}
				}
			})
		})
	}
}

// Those that were asked before, and those that have not been welcomed yet, are not among those chosen.
func TestShedChoosesWhoIsThere(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		devices := r.through(t, 6)[netip.MustParseAddr("10.0.0.1")]
		r.connect(t)
		post := r.shedAPI()
		for _, want := range []int{4, 2, 0} {
			w := post(`{"connections":4}`, adminSecret)
			var answer shedAnswer
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Shed != want {
				t.Errorf("answer = %s, want %d shed", w.Body, want)
			}
			if got := asked(t, devices); got != want {
				t.Errorf("devices asked = %d, want %d", got, want)
			}
		}
	})
}

// Those that were asked and stay are closed after the grace.
func TestShedClosesThoseWhoStay(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		begun := time.Now()
		r.shedAPI()(`{"connections":1}`, adminSecret)
		var g wire.Goaway
		d.want(&g)
		d.wantEnd()
		wantAfter(t, "closed", begun, leaveGrace)
		if got := r.closed(closedDrained); got != 1 {
			t.Errorf("closed_total{drained} = %v, want 1", got)
		}
	})
}

// Who is sent away while nobody can be let in would be without service until auth-service and Redis are back. Row 47.
func TestNobodyIsShedWhoCouldNotComeBack(t *testing.T) {
	for _, dependency := range []string{dependencyAuth, dependencyRedis} {
		t.Run(dependency, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				devices := r.through(t, 4)[netip.MustParseAddr("10.0.0.1")]
				post := r.shedAPI()
				changed := r.dependencyChanged(dependency)

				changed(errors.New("away"))
				if w := post(`{"connections":4}`, adminSecret); w.Code != http.StatusAccepted || !strings.Contains(w.Body.String(), `{"shed":0}`) {
					t.Errorf("answer = %d %s, want 202 and none shed", w.Code, w.Body)
				}
				if got := asked(t, devices); got != 0 {
					t.Errorf("devices asked = %d, want none", got)
				}

				// It goes away in the middle: the first of four is asked at once, the others would be later.
				changed(nil)
				post(`{"connections":4,"over_ms":4000}`, adminSecret)
				synctest.Wait()
				changed(errors.New("away"))
				time.Sleep(5 * time.Second)
				if got := asked(t, devices); got != 1 {
					t.Errorf("devices asked = %d, want the one that was asked before", got)
				}
			})
		})
	}
}

func TestShedRefusals(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		d := r.enrolled(t, clientID(1))
		post := r.shedAPI()
		for _, tt := range []struct {
			name, body, bearer string
			want               int
		}{
			{"wrong secret", `{"connections":1}`, "wrong-wrong-wrong", http.StatusUnauthorized},
			{"no secret", `{"connections":1}`, "", http.StatusUnauthorized},
			{"no JSON", `{"connections":`, adminSecret, http.StatusBadRequest},
			{"fewer than none", `{"connections":-1}`, adminSecret, http.StatusBadRequest},
			{"less than no time", `{"connections":1,"over_ms":-1}`, adminSecret, http.StatusBadRequest},
			{"more than ten minutes", `{"connections":1,"over_ms":600001}`, adminSecret, http.StatusBadRequest},
			{"a name for an address", `{"connections":1,"from":["lb-1"]}`, adminSecret, http.StatusBadRequest},
		} {
			if w := post(tt.body, tt.bearer); w.Code != tt.want {
				t.Errorf("%s: status = %d, want %d", tt.name, w.Code, tt.want)
			}
		}
		d.quiet(time.Second)
	})
}

// Ten minutes are taken; eight calls may be under way, and leave room when they are done.
func TestShedsAreBounded(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		const most = 8
		r.through(t, 2*most+2)
		post := r.shedAPI()
		for i := range most {
			if w := post(`{"connections":2,"over_ms":2000}`, adminSecret); w.Code != http.StatusAccepted {
				t.Errorf("call %d: status = %d, want 202", i+1, w.Code)
			}
			synctest.Wait() // its first device is gone, the other is to wait for a second
		}
		if w := post(`{"connections":1,"over_ms":600000}`, adminSecret); w.Code != http.StatusTooManyRequests {
			t.Errorf("call %d: status = %d, want 429", most+1, w.Code)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if w := post(`{"connections":1,"over_ms":600000}`, adminSecret); w.Code != http.StatusAccepted {
			t.Errorf("after the others: status = %d, want 202", w.Code)
		}
	})
}

func TestShedIsSpread(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		var list []*session
		var devices []*device
		for i := range byte(4) {
			devices = append(devices, r.enrolled(t, clientID(i)))
			list = append(list, r.table.find(clientID(i)))
		}
		r.sheds <- struct{}{}
		r.begin()
		go r.shed(list, 8*time.Second)
		begun := time.Now()
		for i, d := range devices {
			var g wire.Goaway
			d.want(&g)
			if got, want := time.Since(begun), time.Duration(i)*2*time.Second; got != want {
				t.Errorf("GOAWAY %d after %v, want %v", i, got, want)
			}
		}
	})
}
