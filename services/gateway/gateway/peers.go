package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

const (
	peerSlots   = 256             // calls to other gateways at once
	peerTimeout = 2 * time.Second // of a call, besides what it waits for an acknowledgement
	// headerForwarded marks a call that another gateway has sent on: it goes no further.
	headerForwarded = "Goshield-Forwarded"
)

// peers calls the push APIs of other gateways. It is safe for concurrent use.
type peers struct {
	node    string
	secret  *secret.Secret
	client  *http.Client
	timeout time.Duration // static: peerTimeout
	slots   chan struct{} // one token per call of ours in the background
	warned  atomic.Bool   // that takeovers are refused
}

func newPeers(node string, s *secret.Secret) *peers {
	return &peers{
		node: node, secret: s, timeout: peerTimeout, slots: make(chan struct{}, peerSlots),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32, IdleConnTimeout: 90 * time.Second, DisableCompression: true}},
	}
}

// call makes one call and returns its status. The answer's body is of no interest.
func (p *peers) call(ctx context.Context, method, target string, body []byte) (status int, err error) {
	err = p.exchange(ctx, method, target, body, func(resp *http.Response) error {
		status = resp.StatusCode
		return nil
	})
	return status, err
}

// exchange makes one call and hands its answer to read.
func (p *peers) exchange(ctx context.Context, method, target string, body []byte, read func(*http.Response) error) error {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+p.secret.First())
	req.Header.Set(headerForwarded, p.node)
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = read(resp)
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be kept
	return err
}

func deviceURL(node registry.Node, id wire.ClientID, rest string) string {
	return "http://" + node.Push + pathDevices + "/" + id.String() + rest
}

// push pushes to a device of that gateway.
func (p *peers) push(ctx context.Context, node registry.Node, id wire.ClientID, m pushMessage) pushOutcome {
	if !wire.ValidJSON(m.Body) {
		return pushRefused
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout+time.Duration(m.WaitMS)*time.Millisecond)
	defer cancel()
	status, err := p.call(ctx, http.MethodPost, deviceURL(node, id, "/messages"), m.appendJSON(nil))
	if neverSent(err) {
		return pushNotConnected // that gateway has died
	}
	if err != nil {
		return pushNoAck // it may have arrived there
	}
	for outcome, s := range outcomeStatus {
		if s == status {
			return outcome
		}
	}
	return pushNoAck
}

// neverSent reports whether a call failed before anything of it was sent.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// endSession ends the device's session there: for a kick, or, with an epoch, because a newer one
// has begun.
func (p *peers) endSession(ctx context.Context, node registry.Node, id wire.ClientID, epoch int64) (int, error) {
	query := ""
	if epoch != 0 {
		query = "?" + url.Values{"reason": {string(wire.CodeTakenOver)}, "epoch": {strconv.FormatInt(epoch, 10)}}.Encode()
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	return p.call(ctx, http.MethodDelete, deviceURL(node, id, "/session")+query, nil)
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

// evictTries is how often a gateway is told that it lost a device.
const evictTries = 3

// evictElsewhere ends the session that a new one has replaced, if it is
// on another gateway, in the background. If it is one of this gateway's whose claim got no answer, those before it are looked for.
func (s *Server) evictElsewhere(previousOwner string, id wire.ClientID, epoch int64) {
	lost := s.unsure.take(id, s.now())
	owner, ok := registry.ParseOwner(previousOwner)
	switch {
	case !ok || s.peers == nil:
	case owner.Node != s.cfg.Node:
		s.startEvict(owner.Node, id, epoch)
	case lost:
		s.evictEverywhere(id, epoch)
	}
}

func (s *Server) startEvict(name string, id wire.ClientID, epoch int64) {
	if s.begin() {
		go s.evict(name, id, epoch)
	}
}

// evictPause is how long to wait before another try.
func evictPause(try int) time.Duration { return jitter(100 * time.Millisecond << try) }

// evict ends after some tries. An old session that cannot be ended this way ends when its gateway
// compares its sessions with Redis, or it asks for a rotation.
func (s *Server) evict(name string, id wire.ClientID, epoch int64) {
	defer s.work.Done()
	var err error
	for try := range evictTries {
		if try > 0 && !s.sleep(evictPause(try)) {
			return
		}
		if err = s.evictOnce(name, id, epoch); err == nil {
			return
		}
	}
	s.metrics.takeoversLost.Inc()
	level := zap.DebugLevel // as when that gateway has died
	if errors.Is(err, errTakeoverRefused) && !s.peers.warned.Swap(true) {
		level = zap.WarnLevel // gateways with different secrets, most likely: said once, counted always
	}
	s.log.Log(level, "an older session on another gateway could not be ended", zap.String("gateway", name), zap.Error(err))
}

// errTakeoverRefused: a gateway answered something else than that the session is gone.
var errTakeoverRefused = errors.New("the takeover was refused")

func (s *Server) evictOnce(name string, id wire.ClientID, epoch int64) error {
	select {
	case s.peers.slots <- struct{}{}:
		defer func() { <-s.peers.slots }()
	case <-s.ctx.Done():
		return nil
	}
	node, err := s.lookup(s.ctx, name)
	if errors.Is(err, registry.ErrNotConnected) {
		return nil // that gateway is gone, and its sessions with it
	}
	if err != nil {
		return err
	}
	status, err := s.peers.endSession(s.ctx, node, id, epoch)
	if err == nil && status != http.StatusNoContent && status != http.StatusNotFound {
		err = fmt.Errorf("%w: status %d", errTakeoverRefused, status)
	}
	return err
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
