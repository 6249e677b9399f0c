package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

const (
	peerCalls      = 512             // pushes, kicks and lists under way to other gateways at once
	peerCallsToOne = peerCalls / 2   // of them to one gateway: one that does not answer leaves room for others
	peerTimeout    = 2 * time.Second // of a call, besides what it waits for an acknowledgement
	// peerPause is between two calls to a gateway that did not answer in time, until it answers one.
	peerPause = time.Second
	// peerMemory is how long a gateway that does not answer, and is not called, is known as such.
	peerMemory = time.Minute
	// headerForwarded marks a call that another gateway has sent on: it goes no further.
	headerForwarded = "Goshield-Forwarded"
)

// peers calls the push APIs of other gateways. It is safe for concurrent use.
type peers struct {
	node      string
	secret    *secret.Secret
	client    *http.Client
	timeout   time.Duration // static: peerTimeout
	slots     chan struct{} // one token per push, kick and list under way
	takeovers takeovers
	warned    atomic.Bool // that takeovers are refused

	mu    sync.Mutex
	nodes map[string]*peer // by address: those that are being called, or did not answer lately
}

// peer is what is known of another gateway. peers.mu guards it.
type peer struct {
	calls    int
	answered time.Time // when it last answered, while it has calls
	silent   bool      // a call was not answered in time, nor any that came after it
	again    time.Time // silent: when it may be called again
}

func newPeers(node string, s *secret.Secret) *peers {
	p := &peers{node: node, secret: s, timeout: peerTimeout, slots: make(chan struct{}, peerCalls), nodes: make(map[string]*peer)}
	p.client = &http.Client{Transport: &http.Transport{
		// A dial goes on when its call has ended, so it has a deadline of its own.
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return (&net.Dialer{Timeout: p.timeout}).DialContext(ctx, network, addr)
		},
		MaxIdleConnsPerHost: 32, IdleConnTimeout: 90 * time.Second, DisableCompression: true,
	}}
	return p
}

// take takes a place for a push, a kick or a list, which is then to be given back; false if there is none.
func (p *peers) take() bool {
	select {
	case p.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (p *peers) give() { <-p.slots }

// Errors of calls that were not tried.
var (
	errPeersBusy  = errors.New("as many calls as there may be are under way to other gateways")
	errPeerSilent = errors.New("it did not answer lately")
)

// unsentError says that nothing of a call has left this gateway.
type unsentError struct{ error }

func (e unsentError) Unwrap() error { return e.error }

func unsent(err error) bool {
	var e unsentError
	return errors.As(err, &e)
}

// gone reports whether a call failed because nobody listens there: that gateway has died, for one that leaves stops
// listening after its last device. Nothing else that keeps a call from being sent says so: no descriptor, no route, a name
// that is not resolved.
func gone(err error) bool { return unsent(err) && errors.Is(err, syscall.ECONNREFUSED) }

// peerCall is one call to another gateway.
type peerCall struct {
	method, path string // with the query
	body         []byte // JSON
	wait         time.Duration
	takeover     bool // it has a place of its own; see takeovers
}

// call makes one call and returns its status. The answer's body is of no interest.
func (p *peers) call(ctx context.Context, node registry.Node, c peerCall) (status int, err error) {
	err = p.exchange(ctx, node, c, func(resp *http.Response) error {
		status = resp.StatusCode
		return nil
	})
	return status, err
}

// exchange makes one call and hands its answer to read. It refuses to, with an unsentError, while
// that gateway has as many as it may have, or does not answer.
func (p *peers) exchange(ctx context.Context, node registry.Node, c peerCall, read func(*http.Response) error) (err error) {
	begun, room := time.Now(), peerCallsToOne
	if c.takeover {
		room += takeoversAtOnce
	}
	if err := p.enter(node.Push, room, begun); err != nil {
		return unsentError{err}
	}
	defer func() { p.leave(node.Push, begun, err) }()
	ctx, cancel := context.WithTimeout(ctx, p.timeout+c.wait)
	defer cancel()
	sent := false
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { sent = false }, // the first time, or because nothing could be written to the one before
		GotConn: func(httptrace.GotConnInfo) { sent = true },
	}), c.method, "http://"+node.Push+c.path, bytes.NewReader(c.body))
	if err != nil {
		return unsentError{err}
	}
	req.Header.Set("Authorization", "Bearer "+p.secret.First())
	req.Header.Set(headerForwarded, p.node)
	if len(c.body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(req)
	switch {
	case err != nil && !sent:
		return unsentError{err}
	case err != nil:
		return err
	}
	defer resp.Body.Close()
	err = read(resp)
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be kept
	return err
}

// enter counts a call that is about to be made, or says why it must not be.
func (p *peers) enter(addr string, room int, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[addr]
	switch {
	case n == nil:
		maps.DeleteFunc(p.nodes, func(_ string, n *peer) bool { return n.calls == 0 && now.Sub(n.again) > peerMemory })
		n = &peer{}
		p.nodes[addr] = n
	case n.silent && now.Before(n.again):
		return errPeerSilent
	case n.calls >= room:
		return errPeersBusy
	}
	n.calls++
	n.again = now.Add(peerPause)
	return nil
}

// leave notes how a call ended that began then.
func (p *peers) leave(addr string, begun time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[addr]
	n.calls--
	var late net.Error
	switch now := time.Now(); {
	case err == nil || gone(err):
		n.silent, n.answered = false, now
	case errors.As(err, &late) && late.Timeout() && !n.answered.After(begun):
		n.silent, n.again = true, now.Add(peerPause)
	}
	if n.calls == 0 && !n.silent {
		delete(p.nodes, addr)
	}
}

func devicePath(id wire.ClientID, rest string) string { return pathDevices + "/" + id.String() + rest }

// push pushes to a device of that gateway. An error says why it did not answer; else it has counted
// what became of the message.
func (p *peers) push(ctx context.Context, node registry.Node, id wire.ClientID, m pushMessage) (pushOutcome, error) {
	status, err := p.call(ctx, node, peerCall{
		method: http.MethodPost, path: devicePath(id, "/messages"), body: m.appendJSON(nil), wait: time.Duration(m.WaitMS) * time.Millisecond,
	})
	switch {
	case errors.Is(err, errPeersBusy):
		return pushQueueFull, err
	case gone(err):
		return pushNotConnected, err
	case unsent(err):
		return pushUnavailable, err
	case err != nil:
		return pushNoAck, err // it may have arrived there
	}
	for outcome, s := range outcomeStatus {
		if s == status {
			return outcome, nil
		}
	}
	err = fmt.Errorf("the other gateway answered %d", status)
	if status == http.StatusUnauthorized {
		return pushUnavailable, err
	}
	return pushNoAck, err
}

// endSession ends the device's session there: for a kick, or, with an epoch, because a newer one
// has begun.
func (p *peers) endSession(ctx context.Context, node registry.Node, id wire.ClientID, epoch int64) (int, error) {
	query := ""
	if epoch != 0 {
		query = "?" + url.Values{"reason": {string(wire.CodeTakenOver)}, "epoch": {strconv.FormatInt(epoch, 10)}}.Encode()
	}
	return p.call(ctx, node, peerCall{method: http.MethodDelete, path: devicePath(id, "/session") + query, takeover: epoch != 0})
}

// locate finds the other gateway that has a device.
func (s *Server) locate(ctx context.Context, id wire.ClientID) (registry.Node, error) {
	owner, err := s.registry.Locate(ctx, id)
	if err != nil {
		return registry.Node{}, err
	}
	if owner.Node == s.cfg.Node {
		return registry.Node{}, registry.ErrNotConnected // it was here, and is no more
	}
	return s.lookup(ctx, owner.Node)
}

func (s *Server) lookup(ctx context.Context, name string) (registry.Node, error) {
	node, err := s.registry.Lookup(ctx, name)
	if err == nil && node.Push == "" {
		err = registry.ErrNotConnected
	}
	return node, err
}

// sleep waits, and reports whether the gateway still runs.
func (s *Server) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}
