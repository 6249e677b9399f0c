package echo

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

const (
	// pushService is the service that pushes.
	pushService = "push"
	// maxPushes is how many may wait for their time at once.
	maxPushes = 1000
	// maxAfter is the longest a device may put its push off.
	maxAfter = 10 * time.Minute
)

// pushRequest is what a device asks of the service "push".
type pushRequest struct {
	AfterMS int64           `json:"after_ms"`
	Body    json.RawMessage `json:"body"`
}

// pusher pushes to devices that asked for it, later.
type pusher struct {
	srv    *Server // static after construction
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	stopped bool
	waiting int
	pushing sync.WaitGroup
}

func newPusher(s *Server) *pusher {
	p := &pusher{srv: s}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// stop drops the pushes whose time has not come, and waits for the others.
func (p *pusher) stop() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.cancel()
	p.pushing.Wait()
}

// pushFunc sends a message to a device, as backend.Server.Push does.
type pushFunc func(ctx context.Context, id wire.ClientID, service string, body []byte) (link.PushResult, error)

// begin takes one push, to be sent by way of send.
func (p *pusher) begin(req backend.Request, send pushFunc) (backend.Response, error) {
	if send == nil {
		return backend.Response{}, wire.Errorf(wire.CodeBackendError, "over HTTP nothing is pushed from here: use the gateways' push API")
	}
	var want pushRequest
	if err := json.Unmarshal(req.Body, &want); err != nil {
		return backend.Response{}, wire.Errorf(wire.CodeBackendError, `service push takes {"after_ms": 500, "body": any JSON}`)
	}
	after := time.Duration(want.AfterMS) * time.Millisecond
	if want.AfterMS < 0 || want.AfterMS > maxAfter.Milliseconds() {
		return backend.Response{}, wire.Errorf(wire.CodeBackendError, "after_ms must be from 0 to %d", maxAfter.Milliseconds())
	}
	if want.Body == nil {
		want.Body = json.RawMessage("null")
	}
	if !p.enter() {
		return backend.Response{}, wire.Errorf(wire.CodeBackendUnavailable, "too many pushes are waiting")
	}
	go p.later(req, after, want.Body, send) // ends after its push, or with stop
	return backend.Response{Body: []byte(`{"pushing":true}`)}, nil
}

func (p *pusher) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || p.waiting >= maxPushes {
		return false
	}
	p.waiting++
	p.pushing.Add(1)
	return true
}

// later waits and pushes.
func (p *pusher) later(req backend.Request, after time.Duration, body []byte, send pushFunc) {
	defer p.pushing.Done()
	defer func() {
		p.mu.Lock()
		p.waiting--
		p.mu.Unlock()
	}()
	if pause(p.ctx, after) != nil {
		return
	}
	result, err := send(p.ctx, req.ClientID, req.Service, body)
	if err != nil {
		p.srv.metrics.pushes.WithLabelValues("unknown").Inc()
		p.srv.log.Warn("push of unknown fate", zap.Stringer("client_id", req.ClientID), zap.Error(err))
		return
	}
	p.srv.metrics.pushes.WithLabelValues(result.String()).Inc()
}
