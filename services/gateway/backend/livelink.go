package backend

import (
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// liveLink is one link to a backend from its handshake to its end: the requests in
// flight on it, and the pushes whose result is awaited.
type liveLink struct {
	pool    *pool // static after construction
	conn    *link.Conn
	streams *link.Streams[request]
	wait    func()        // returns when nothing runs for its connection any more
	left    chan struct{} // closed when it takes no more requests

	leaving atomic.Bool

	mu     sync.Mutex
	pushes map[uint64]*push // by stream
}

// push is one message on its way to a device.
type push struct {
	deadline int64 // Router.clock
}

func newLiveLink(p *pool, conn *link.Conn, wait func()) *liveLink {
	return &liveLink{
		pool:    p,
		conn:    conn,
		wait:    wait,
		streams: link.NewStreams[request](link.Gateway, conn.Limits().MaxStreams),
		left:    make(chan struct{}),
		pushes:  make(map[uint64]*push),
	}
}

// serve runs the link. When it breaks, every request in flight is answered, or sent
// elsewhere, at once.
func (l *liveLink) serve() {
	p := l.pool
	defer p.working.Add(-1)
	cause := l.conn.Receive(l.handle)
	l.leave(false)
	lost := l.streams.GiveUpWhere(nil, func(*request) bool { return true })
	var failed []*endpoint // one link lost is one failure, for each service that lost by it
	for i := range lost {
		if e := lost[i].Value.endpoint; !slices.Contains(failed, e) {
			failed = append(failed, e)
			e.ejector.Failed(cause)
		}
	}
	for i := range lost {
		q := &lost[i].Value
		q.endpoint.target.Release()
		q.lose(q.endpoint.service.selection.Load().failures.lost)
	}
	l.conn.Farewell()
	l.wait()
	p.forget(l)
	level := zap.InfoLevel
	if len(lost) > 0 || !(errors.Is(cause, io.EOF) || errors.Is(cause, link.ErrClosed)) {
		level = zap.WarnLevel
	}
	p.log.Log(level, "link closed", zap.NamedError("reason", cause), zap.Int("requests_lost", len(lost)))
}

// leave has the link take no more requests and end when those in flight
// are answered. tell: the backend does not know yet.
func (l *liveLink) leave(tell bool) {
	if l.leaving.Swap(true) {
		return
	}
	l.pool.withdraw(l)
	l.pool.changed()
	l.streams.Seal()
	if tell {
		_ = l.conn.Goaway() // or it is ending anyway
	}
	close(l.left)
	l.finishIfIdle()
}

// finishIfIdle ends a link that is leaving and has nothing left to do.
func (l *liveLink) finishIfIdle() {
	if !l.leaving.Load() || !l.streams.Drained() {
		return
	}
	l.mu.Lock()
	idle := len(l.pushes) == 0
	l.mu.Unlock()
	if idle {
		l.conn.Finish()
	}
}

// room is how many requests more the backend takes on the link.
func (l *liveLink) room() int { return max(l.conn.Limits().MaxStreams-l.streams.Len(), 0) }

// send puts a request on the link. With an error it is not there.
func (l *liveLink) send(req *Request, q request) (stream uint64, err error) {
	q.endpoint.target.Acquire()
	stream, err = l.streams.Open(q)
	if err != nil {
		q.endpoint.target.Release()
		return 0, err
	}
	if q.retry != nil && !q.retry.at(l, stream) {
		l.abandon(stream) // cancelled while it was sent again
		return stream, nil
	}
	out := link.Request{
		ClientID: req.ClientID,
		Service:  req.Service,
		Deadline: max(time.Duration(q.deadline-l.pool.router.clock()), time.Millisecond),
		JSON:     req.JSON,
		Body:     req.Body,
	}
	if err = l.conn.Request(stream, &out); err == nil {
		return stream, nil
	}
	if _, ok := l.streams.Take(stream); !ok {
		return stream, nil // the link has ended, and the request with it
	}
	q.endpoint.target.Release()
	l.finishIfIdle()
	return 0, err
}

// abandon takes out a request that nobody waits for. false: it was not there.
func (l *liveLink) abandon(stream uint64) bool {
	q, ok := l.streams.GiveUp(stream)
	if !ok {
		return false
	}
	q.endpoint.target.Release()
	_ = l.conn.Cancel(stream) // the backend has the deadline too
	l.finishIfIdle()
	return true
}

// handle takes the link's frames, on its reading goroutine.
func (l *liveLink) handle(f link.Frame) error {
	switch f.Type {
	case link.TypeResponse:
		if q, ok := l.take(f.Stream); ok {
			q.answered(f.Payload)
		}
	case link.TypeError:
		e, err := f.Error()
		if err != nil {
			return err
		}
		if q, ok := l.take(f.Stream); ok {
			q.refused(e)
		}
	case link.TypePush:
		return l.push(f)
	case link.TypeGoaway:
		l.leave(false)
	}
	return nil
}

// take takes out the request that an answer is for. An answer that is for none
// is dropped and counted.
func (l *liveLink) take(stream uint64) (request, bool) {
	q, ok := l.streams.Take(stream)
	if ok {
		q.endpoint.target.Release()
		l.finishIfIdle()
		return q, true
	}
	reason := "unknown"
	if l.streams.Late(stream) {
		reason = "late"
	}
	l.pool.router.metrics.dropped.WithLabelValues(l.pool.to.address, reason).Inc()
	return q, false
}

// answered ends a request that was answered with a RESPONSE.
func (q *request) answered(body []byte) {
	reply := q.endpoint.service.reply(q, body)
	if reply.Err == nil {
		q.endpoint.answered(q)
	} else {
		q.endpoint.erred(q)
	}
	q.done(reply)
}

// maxMessage bounds a backend's words, in bytes: they travel in an ERROR frame.
const maxMessage = 256

// refused ends a request that was answered with an ERROR.
func (q *request) refused(e *wire.Error) {
	message := strings.ToValidUTF8(e.Message[:min(len(e.Message), maxMessage)], "")
	switch e.Code {
	case wire.CodeBackendUnavailable, wire.CodeBackendTimeout:
		q.endpoint.failed(q, e)
		failure := wire.Errorf(e.Code, "%s", message)
		if e.Code == wire.CodeBackendTimeout {
			q.done(Reply{Err: failure})
		} else {
			q.lose(failure)
		}
		return
	case link.CodeBackendFailed:
		e.Code = wire.CodeBackendError
		q.endpoint.failed(q, e)
		q.done(Reply{Err: wire.Errorf(e.Code, "%s", message)})
		return
	case wire.CodeNoSuchService, wire.CodeBackendError:
	default: // a code that would mean something else on the device's connection
		message = strings.ToValidUTF8(string(e.Code[:min(len(e.Code), 64)])+": "+message, "")
		e.Code = wire.CodeBackendError
	}
	q.endpoint.erred(q)
	q.done(Reply{Err: wire.Errorf(e.Code, "%s", message)})
}

// lose ends a request that the backend did not carry out, or sends it once more.
func (q *request) lose(failure *wire.Error) {
	if !q.endpoint.service.sendAgain(*q) {
		q.done(Reply{Err: failure})
	}
}

// errTimedOut is what an endpoint is ejected for.
var errTimedOut = errors.New("requests are not answered in time")

// sweep ends the requests and pushes that are overdue. buf is scratch space,
// returned for the next call.
func (l *liveLink) sweep(now int64, buf []link.Taken[request]) []link.Taken[request] {
	buf = l.streams.GiveUpWhere(buf, func(q *request) bool { return q.deadline <= now })
	for i := range buf {
		q := &buf[i].Value
		e := q.endpoint
		e.target.Release()
		e.failed(q, errTimedOut)
		_ = l.conn.Cancel(buf[i].ID) // the backend has the deadline too
		q.done(Reply{Err: e.service.selection.Load().failures.timeout})
		buf[i].Value = request{} // keep nothing alive
	}
	late := l.latePushes(now)
	for _, stream := range late {
		_ = l.conn.PushResult(stream, link.PushTimedOut) // or it is ending anyway
	}
	if len(buf) > 0 || len(late) > 0 {
		l.finishIfIdle()
	}
	return buf
}
