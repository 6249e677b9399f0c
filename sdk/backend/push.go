package backend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// resultTime is how long a gateway's answer to a push is waited for. The gateway
// gives up on the device after 5 s and says so.
const resultTime = 7 * time.Second

// Push sends a message to a device through whichever gateway it is connected to, and
// says what became of it. service is what the message is about, a name for the device; body is
// in the device's encoding.
//
// Each gateway with a link to this server is asked in turn until one does not
// answer that the device is not connected. An error means that it is not
// known what became of the message, or that it could not be sent: ctx ended, a link
// was lost after the message went out, no gateway is linked, or it is too large.
func (s *Server) Push(ctx context.Context, id wire.ClientID, service string, body []byte) (link.PushResult, error) {
	if service == "" || len(service) > link.MaxServiceName {
		return link.PushNotConnected, fmt.Errorf("backend: push: the service's name must have from 1 to %d bytes", link.MaxServiceName)
	}
	push := link.Push{ClientID: id, Service: service, Body: body}
	asked := asked{tried: make(map[*gatewayLink]bool), unsent: make(map[string]error)}
	for {
		l := s.nextLink(asked.tried)
		if l == nil {
			return link.PushNotConnected, asked.verdict()
		}
		sent, result, err := l.push(ctx, &push)
		node := l.conn.Peer().Node
		asked.tried[l] = true
		switch {
		case sent && err != nil:
			return link.PushTimedOut, fmt.Errorf("backend: push by gateway %s: %w", node, err)
		case sent && result != link.PushNotConnected:
			return result, nil
		case sent:
			s.notAgain(&asked, node)
		default:
			asked.unsent[node] = err
		}
		if err := ctx.Err(); err != nil {
			return link.PushNotConnected, err
		}
	}
}

// asked is how far a push has come on its way around the gateways.
type asked struct {
	tried  map[*gatewayLink]bool
	unsent map[string]error // by gateway: why it could not be asked on any link so far
}

// verdict is nil if every gateway knows nothing of the device.
func (a *asked) verdict() error {
	if len(a.tried) == 0 {
		return errors.New("backend: push: no gateway has a link to this server")
	}
	for node, err := range a.unsent {
		return fmt.Errorf("backend: push by gateway %s: %w", node, err)
	}
	return nil
}

// nextLink picks the least busy link that was not tried, nil when there is none.
func (s *Server) nextLink(tried map[*gatewayLink]bool) *gatewayLink {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *gatewayLink
	for l := range s.links {
		if !tried[l] && (best == nil || l.pushes.Len() < best.pushes.Len()) {
			best = l
		}
	}
	return best
}

// notAgain notes that the gateway of that name does not know the device: its
// other links need not be tried.
func (s *Server) notAgain(a *asked, node string) {
	delete(a.unsent, node)
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.links {
		if l.conn.Peer().Node == node {
			a.tried[l] = true
		}
	}
}

// push sends p on this link and waits for the result.
func (l *gatewayLink) push(ctx context.Context, p *link.Push) (sent bool, result link.PushResult, err error) {
	answer := make(chan link.PushResult, 1)
	stream, err := l.pushes.Open(answer)
	if err != nil {
		return false, 0, err
	}
	if err := l.conn.Push(stream, p); err != nil {
		l.pushes.Take(stream)
		return false, 0, err
	}
	timer := time.NewTimer(resultTime)
	defer timer.Stop()
	select {
	case r, ok := <-answer:
		if !ok {
			return true, 0, errors.New("the link was lost")
		}
		return true, r, nil
	case <-timer.C:
		err = errors.New("the gateway does not answer")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	l.pushes.GiveUp(stream)
	return true, 0, err
}
