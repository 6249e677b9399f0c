package gateway

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

// Other gateways that do not answer, although their keys live.

// neighbours play the other gateways, from when a call has reached them. gw-frozen answers nothing until it is thawed,
// gw-well all.
type neighbours struct {
	mu       sync.Mutex
	frozen   bool
	underWay int // calls that gw-frozen has not answered
	asked    int // calls to gw-frozen
	answered int // calls to gw-well
	body     string
	status   int // of what is answered; 0: that of success
}

func (n *neighbours) RoundTrip(req *http.Request) (*http.Response, error) {
	httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{})
	frozen, status := n.arrive(req)
	if frozen {
		<-req.Context().Done()
		n.mu.Lock()
		defer n.mu.Unlock()
		n.underWay--
		return nil, req.Context().Err()
	}
	return &http.Response{StatusCode: status, Body: http.NoBody, Header: http.Header{}, Request: req}, nil
}

func (n *neighbours) arrive(req *http.Request) (frozen bool, status int) {
	data, _ := io.ReadAll(req.Body)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.body = string(data)
	if req.URL.Host == "frozen:9400" {
		n.asked++
		if n.frozen {
			n.underWay++
		}
		frozen = n.frozen
	} else {
		n.answered++
	}
	status = map[string]int{http.MethodPost: http.StatusOK, http.MethodDelete: http.StatusNoContent}[req.Method]
	if n.status != 0 {
		status = n.status
	}
	return frozen, status
}

// counts are how many calls gw-frozen has not answered and has got, and gw-well has answered, once all is quiet.
func (n *neighbours) counts() (underWay, asked, answered int) {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.underWay, n.asked, n.answered
}

// neighbourhood gives a server these neighbours: clientID(1) is at gw-frozen, clientID(2) at gw-well.
func (r *rig) neighbourhood() *neighbours {
	n := &neighbours{frozen: true}
	r.Server.peers = newPeers("gw-1", secret.Static(testSecret))
	r.Server.peers.client.Transport = n
	r.nodes.nodes = map[string]registry.Node{"gw-frozen": {Push: "frozen:9400"}, "gw-well": {Push: "well:9400"}}
	r.nodes.owners = map[wire.ClientID]registry.Owner{
		clientID(1): {Node: "gw-frozen", Session: "1", Epoch: 1}, clientID(2): {Node: "gw-well", Session: "1", Epoch: 1},
	}
	return n
}

// pushed pushes as a backend does; the channel has the result once it is known.
func (r *rig) pushed(id wire.ClientID, body string) <-chan link.PushResult {
	result := make(chan link.PushResult, 1)
	r.pushFromBackend(id, "news", []byte(body), func(p link.PushResult) { result <- p })
	return result
}

// atOnce wants a result before any time passes.
func atOnce(t *testing.T, result <-chan link.PushResult, want link.PushResult) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-result:
		if got != want {
			t.Errorf("result = %v, want %v", got, want)
		}
	default:
		t.Errorf("no result at once, want %v", want)
	}
}

// call calls the push API.
func (r *rig) call(t *testing.T, method, path, body string) (status int, answer map[string]any) {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+testSecret)
	rec := httptest.NewRecorder()
	r.pushHandler(secret.Static(testSecret)).ServeHTTP(rec, req)
	if rec.Body.Len() > 0 {
		if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
	}
	return rec.Code, answer
}

// A gateway with 10 000 devices freezes, and they all come here. That holds up neither what is for other
// gateways nor more than a few goroutines, and each of its sessions is accounted for.
func TestTakeoversFromAFrozenGateway(t *testing.T) {
	const takeovers = 10_000
	for _, tt := range []struct {
		name        string
		after       func(r *rig, n *neighbours)
		lost, asked [2]float64 // from, to
	}{
		{"it answers nothing more", func(*rig, *neighbours) {}, [2]float64{takeovers, takeovers}, [2]float64{takeoversAtOnce, 5 * takeoversAtOnce}},
		{"it thaws", func(_ *rig, n *neighbours) {
			time.Sleep(takeoverWait / 2)
			n.mu.Lock()
			n.frozen = false
			n.mu.Unlock()
		}, [2]float64{0, takeoversAtOnce}, [2]float64{takeovers - takeoversAtOnce, takeovers + 5*takeoversAtOnce}},
		{"its key lapses", func(r *rig, _ *neighbours) {
			time.Sleep(takeoverWait / 2)
			r.nodes.mu.Lock()
			delete(r.nodes.nodes, "gw-frozen")
			r.nodes.mu.Unlock()
		}, [2]float64{0, takeovers / 10}, [2]float64{takeoversAtOnce, 5 * takeoversAtOnce}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				n := r.neighbourhood()
				before := runtime.NumGoroutine()
				for i := range takeovers {
					r.evictElsewhere("gw-frozen/1", clientID(1), int64(i+1))
				}
				if underWay, _, _ := n.counts(); underWay != takeoversAtOnce {
					t.Errorf("takeovers under way = %d, want %d", underWay, takeoversAtOnce)
				}
				if more := runtime.NumGoroutine() - before; more > 10*takeoversAtOnce {
					t.Errorf("goroutines for %d takeovers = %d, want a few", takeovers, more)
				}
				r.evictElsewhere("gw-well/1", clientID(2), 7)
				if _, _, answered := n.counts(); answered != 1 {
					t.Errorf("takeovers from the gateway that is well = %d, want 1 at once", answered)
				}
				atOnce(t, r.pushed(clientID(2), `1`), link.PushAcknowledged)
				tt.after(r, n)
				time.Sleep(time.Minute)
				_, asked, _ := n.counts()
				if got := float64(asked); got < tt.asked[0] || got > tt.asked[1] {
					t.Errorf("calls to the frozen gateway = %v, want from %v to %v", got, tt.asked[0], tt.asked[1])
				}
				if got := testutil.ToFloat64(r.Server.metrics.takeoversLost); got < tt.lost[0] || got > tt.lost[1] {
					t.Errorf("takeovers_failed_total = %v, want from %v to %v", got, tt.lost[0], tt.lost[1])
				}
				if q := r.Server.peers.takeovers.queues; len(q) != 0 {
					t.Errorf("queues after a minute = %d, want none", len(q))
				}
			})
		})
	}
}

func TestWaitingTakeoversAreBounded(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		n := r.neighbourhood()
		take := func(takeovers int) {
			for i := range takeovers {
				r.evictElsewhere("gw-frozen/1", clientID(1), int64(i+1))
			}
			n.counts()
		}
		take(takeoversAtOnce)
		take(takeoversMax + 5)
		if got := testutil.ToFloat64(r.Server.metrics.takeoversLost); got != 5 {
			t.Errorf("takeovers_failed_total = %v, want 5", got)
		}
	})
}

// Messages for a frozen gateway leave room for others; once one was not answered, the next ones are refused at once, but for one
// a second that tries, until it answers.
func TestPushesToAFrozenGateway(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		n := r.neighbourhood()
		var waiting []<-chan link.PushResult
		for range peerCallsToOne {
			waiting = append(waiting, r.pushed(clientID(1), `1`))
		}
		if underWay, _, _ := n.counts(); underWay != peerCallsToOne {
			t.Errorf("calls under way = %d, want %d", underWay, peerCallsToOne)
		}
		atOnce(t, r.pushed(clientID(1), `1`), link.PushQueueFull)
		atOnce(t, r.pushed(clientID(2), `1`), link.PushAcknowledged)
		time.Sleep(r.timings.pushAck + peerTimeout)
		for _, w := range waiting {
			atOnce(t, w, link.PushTimedOut)
		}
		for range 100 {
			atOnce(t, r.pushed(clientID(1), `1`), link.PushNotConnected)
			time.Sleep(peerPause / 200)
		}
		if _, asked, _ := n.counts(); asked != peerCallsToOne {
			t.Errorf("calls = %d, want none after those that were not answered, %d", asked, peerCallsToOne)
		}
		if status, answer := r.call(t, http.MethodPost, deviceOf(clientID(1), "/messages"), `{"service":"news","body":1}`); status != http.StatusServiceUnavailable {
			t.Errorf("push = %d %v, want 503", status, answer)
		}
		time.Sleep(peerPause)
		try := r.pushed(clientID(1), `1`)
		if underWay, _, _ := n.counts(); underWay != 1 {
			t.Errorf("calls under way after a pause = %d, want one that tries", underWay)
		}
		atOnce(t, r.pushed(clientID(1), `1`), link.PushNotConnected)
		n.mu.Lock()
		n.frozen = false
		n.mu.Unlock()
		time.Sleep(peerPause)
		atOnce(t, r.pushed(clientID(1), `1`), link.PushAcknowledged)
		atOnce(t, r.pushed(clientID(1), `1`), link.PushAcknowledged)
		if got := <-try; got != link.PushTimedOut {
			t.Errorf("result of the one that tried = %v, want timed out", got)
		}
		for o, want := range map[pushOutcome]float64{
			pushQueueFull: 1, pushNoAck: peerCallsToOne + 1, pushUnavailable: 102, pushNotConnected: 0, pushAcked: 0,
		} {
			if got := testutil.ToFloat64(r.Server.metrics.pushes.WithLabelValues(string(o))); got != want {
				t.Errorf("pushes_total{%s} = %v, want %v", o, got, want)
			}
		}
	})
}

// As many calls as there are places may be under way to all other gateways; whatever is more is refused as the protocol says.
func TestCallsToOtherGatewaysAreBounded(t *testing.T) {
	bubble(t, testDoc(), func(t *testing.T, r *rig) {
		n := r.neighbourhood()
		r.nodes.nodes["gw-frozen-2"] = registry.Node{Push: "frozen-2:9400"}
		r.nodes.owners[clientID(3)] = registry.Owner{Node: "gw-frozen-2", Session: "1", Epoch: 1}
		hold := make(chan struct{})
		r.Server.peers.client.Transport = roundTripper(func(req *http.Request) (*http.Response, error) {
			if strings.HasPrefix(req.URL.Host, "frozen") {
				<-hold
			}
			return n.RoundTrip(req)
		})
		n.frozen = false
		var work sync.WaitGroup
		statuses := make(chan int, 2*peerCalls)
		for i := range 2 * peerCalls {
			work.Go(func() {
				status, _ := r.call(t, http.MethodPost, deviceOf(clientID(1+2*byte(i%2)), "/messages"), `{"service":"news","body":1,"wait_ms":25000}`)
				statuses <- status
			})
			synctest.Wait()
		}
		if status, answer := r.call(t, http.MethodPost, deviceOf(clientID(2), "/messages"), `{"service":"news","body":1}`); status != http.StatusConflict {
			t.Errorf("push = %d %v, want 409", status, answer)
		}
		if status, answer := r.call(t, http.MethodDelete, deviceOf(clientID(2), "/session"), ""); status != http.StatusServiceUnavailable {
			t.Errorf("kick = %d %v, want 503", status, answer)
		}
		status, answer := r.call(t, http.MethodGet, "/v1/devices?scope=all&cursor=gw-well/", "")
		if missing, _ := answer["missing"].([]any); status != http.StatusOK || len(missing) != 1 || missing[0] != "gw-well" {
			t.Errorf("list = %d %v, want 200 and gw-well missing", status, answer)
		}
		atOnce(t, r.pushed(clientID(2), `1`), link.PushQueueFull)
		close(hold)
		work.Wait()
		close(statuses)
		got := map[int]int{}
		for s := range statuses {
			got[s]++
		}
		if got[http.StatusOK] != peerCalls || got[http.StatusConflict] != peerCalls {
			t.Errorf("%d pushes were answered %v, want %d each of 200 and 409", 2*peerCalls, got, peerCalls)
		}
		if status, _ := r.call(t, http.MethodDelete, deviceOf(clientID(2), "/session"), ""); status != http.StatusNoContent {
			t.Errorf("kick when there is room again = %d, want 204", status)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// A gateway that cannot be reached is not one that has died: its device may well be connected. Only a refused connection
// says that nobody is there.
func TestUnreachableGateway(t *testing.T) {
	dial := func(syscallName string, err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(syscallName, err)}
	}
	for _, tt := range []struct {
		name string
		dial error
		want int
	}{
		{"it has died", dial("connect", syscall.ECONNREFUSED), http.StatusNotFound},
		{"no descriptor is left here", dial("socket", syscall.EMFILE), http.StatusServiceUnavailable},
		{"no route", dial("connect", syscall.EHOSTUNREACH), http.StatusServiceUnavailable},
		{"no name", &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "gw-2", IsNotFound: true}}, http.StatusServiceUnavailable},
		{"nothing comes back", nil, http.StatusServiceUnavailable},
	} {
		for method, rest := range map[string]string{http.MethodPost: "/messages", http.MethodDelete: "/session"} {
			bubble(t, testDoc(), func(t *testing.T, r *rig) {
				r.neighbourhood()
				tr := newPeers("gw-1", secret.Static(testSecret)).client.Transport.(*http.Transport)
				tr.DialContext = func(context.Context, string, string) (net.Conn, error) {
					if tt.dial == nil {
						time.Sleep(time.Minute)
						return nil, dial("connect", syscall.ETIMEDOUT)
					}
					return nil, tt.dial
				}
				r.Server.peers.client.Transport = tr
				begun := time.Now()
				status, answer := r.call(t, method, deviceOf(clientID(1), rest), `{"service":"news","body":1}`)
				if status != tt.want {
					t.Errorf("%s: %s = %d %v, want %d", tt.name, method, status, answer, tt.want)
				}
				if took := time.Since(begun); took > peerTimeout {
					t.Errorf("%s: %s took %v, want %v at most", tt.name, method, took, peerTimeout)
				}
				time.Sleep(time.Minute) // the dial ends
			})
		}
	}
}

// A gateway of before bytes could cross refuses what it does not know, in place of delivering something else; one
// with another secret has not had the message.
func TestGatewayThatRefusesAMessage(t *testing.T) {
	for _, tt := range []struct {
		body, sent string
		status     int
		want       pushOutcome
	}{
		{"\xfe", `{"service":"news","body_base64":"/g==","wait_ms":5000}`, http.StatusBadRequest, pushRefused},
		{`{"a":1}`, `{"service":"news","body":{"a":1},"wait_ms":5000}`, http.StatusUnauthorized, pushUnavailable},
		{`{"a":1}`, `{"service":"news","body":{"a":1},"wait_ms":5000}`, http.StatusInternalServerError, pushNoAck},
	} {
		bubble(t, testDoc(), func(t *testing.T, r *rig) {
			n := r.neighbourhood()
			n.status = tt.status
			outcome := r.pushElsewhere(t.Context(), clientID(2), pushMessage{Service: "news", Body: []byte(tt.body), WaitMS: 5000})
			if outcome != tt.want || n.body != tt.sent {
				t.Errorf("status %d: outcome = %s of %s, want %s of %s", tt.status, outcome, n.body, tt.want, tt.sent)
			}
		})
	}
}
