package backend

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// gatewayLink is one gateway's link: the requests that run, and the pushes
// that wait for their result.
type gatewayLink struct {
	srv    *Server // static after construction
	conn   *link.Conn
	pushes *link.Streams[chan<- link.PushResult]

	mu      sync.Mutex
	running map[uint64]*call // by stream id
}

func newGatewayLink(s *Server, conn *link.Conn) *gatewayLink {
	return &gatewayLink{
		srv:     s,
		conn:    conn,
		pushes:  link.NewStreams[chan<- link.PushResult](link.Backend, conn.Limits().MaxStreams),
		running: make(map[uint64]*call),
	}
}

// call is one request that runs.
type call struct {
	callContext
	link   *gatewayLink
	stream uint64
	req    Request
}

// handle takes the link's frames, on its reading goroutine.
func (l *gatewayLink) handle(f link.Frame) error {
	switch f.Type {
	case link.TypeRequest:
		return l.begin(f)
	case link.TypeCancel:
		l.cancel(f.Stream)
	case link.TypePushResult:
		r, err := f.PushResult()
		if err != nil {
			return err
		}
		if result, ok := l.pushes.Take(f.Stream); ok {
			result <- r // has room for one
		}
	case link.TypeGoaway:
		l.pushes.Seal()
	}
	return nil
}

// begin hands a request to a worker.
func (l *gatewayLink) begin(f link.Frame) error {
	r, err := f.Request()
	if err != nil {
		return err
	}
	c := &call{link: l, stream: f.Stream, req: Request{
		ClientID: r.ClientID,
		Service:  r.Service,
		Body:     append([]byte(nil), r.Body...),
		JSON:     r.JSON,
		Gateway:  l.conn.Peer().Node,
	}}
	if r.Deadline > 0 {
		c.deadline = time.Now().Add(r.Deadline)
	}
	l.mu.Lock()
	_, twice := l.running[f.Stream]
	full := len(l.running) >= l.conn.Limits().MaxStreams
	if !twice && !full {
		l.running[f.Stream] = c
	}
	l.mu.Unlock()
	switch {
	case twice:
		return wire.Errorf(wire.CodeBadFrame, "REQUEST of stream %d, which is in flight", f.Stream)
	case full:
		// More than was agreed, or cancelled requests whose handlers go on. The
		// reader must not wait for room in the queue.
		return l.conn.Refuse(f.Stream, wire.CodeBackendUnavailable, "as many requests are running as this backend takes")
	}
	l.srv.workers.do(c)
	return nil
}

// run is a call's whole work, on a worker.
func (c *call) run() {
	resp, err := Response{}, c.ended()
	if err == nil {
		resp, err = c.handle()
	}
	if !c.link.finish(c) {
		return // cancelled: nobody waits
	}
	if err == nil {
		err = c.link.conn.Respond(c.stream, resp.Body)
		if err == nil || errors.Is(err, link.ErrClosed) {
			return // sent, or the link has ended
		}
	}
	code, message := failure(err)
	_ = c.link.conn.Fail(c.stream, code, message) // or the link has ended
}

// handle calls the handler.
func (c *call) handle() (resp Response, err error) {
	defer func() {
		if v := recover(); v != nil {
			c.link.srv.log().Error("the handler panicked", "service", c.req.Service, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = wire.Errorf(wire.CodeBackendError, "the backend failed")
		}
	}()
	srv := c.link.srv
	if len(srv.Services) > 0 && !slices.Contains(srv.Services, c.req.Service) {
		return Response{}, wire.Errorf(wire.CodeNoSuchService, "this backend does not answer for service %s", c.req.Service)
	}
	return srv.Handler(&c.callContext, c.req)
}

// finish takes the call out. false: it was cancelled.
func (l *gatewayLink) finish(c *call) bool {
	l.mu.Lock()
	delete(l.running, c.stream)
	l.mu.Unlock()
	return !c.callContext.cancel()
}

// failure is how an error travels.
func failure(err error) (wire.Code, string) {
	var e *wire.Error
	switch {
	case errors.As(err, &e):
		switch e.Code {
		case wire.CodeNoSuchService, wire.CodeBackendUnavailable, wire.CodeBackendTimeout, wire.CodeBackendError, link.CodeBackendFailed:
			return e.Code, e.Message
		}
	case errors.Is(err, context.DeadlineExceeded):
		return wire.CodeBackendTimeout, err.Error()
	}
	return wire.CodeBackendError, err.Error()
}

// cancel ends a call's context. The call stays until its handler returns: it
// still counts.
func (l *gatewayLink) cancel(stream uint64) {
	l.mu.Lock()
	c := l.running[stream]
	l.mu.Unlock()
	if c != nil {
		c.callContext.cancel()
	}
}

// goaway asks the gateway for no more.
func (l *gatewayLink) goaway() {
	l.pushes.Seal()
	if l.conn.Goaway() != nil {
		l.conn.Close() // it reads nothing, or has ended
	}
}

// lost ends what depends on the link, which has ended.
func (l *gatewayLink) lost() {
	l.pushes.Seal()
	for _, p := range l.pushes.GiveUpWhere(nil, func(*chan<- link.PushResult) bool { return true }) {
		close(p.Value)
	}
	l.mu.Lock()
	calls := make([]*call, 0, len(l.running))
	for _, c := range l.running {
		calls = append(calls, c)
	}
	l.mu.Unlock()
	for _, c := range calls {
		c.callContext.cancel()
	}
}

func (l *gatewayLink) inFlight() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.running)
}
