package gateway

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// table finds the open session of a device. It has a part per first byte of
// the client_id, in whose order a listing walks. It is safe for concurrent use.
type table struct {
	parts [256]tablePart

	mu      sync.Mutex
	revoked map[wire.ClientID]int64 // when, in the last moments; see revokedLately
	swept   int64
}

type tablePart struct {
	mu       sync.Mutex
	sessions map[wire.ClientID]*session
	evicted  map[wire.ClientID]eviction // in the last moments; see evict. nil: none yet
	swept    int64                      // when evicted was
}

// eviction is a newer session elsewhere that was heard of.
type eviction struct{ epoch, at int64 }

const (
	// evictedMemory is how long an eviction is remembered for a session that is just opening: longer than
	// any call to auth-service takes.
	evictedMemory = int64(30 * time.Second)
	// evictedMax is how many a part remembers. One that is forgotten too early leaves an older
	// session open until its heartbeat, or the next comparison with Redis.
	evictedMax = 1024
)

// revokedMemory is how long a revocation is remembered for sessions that open: longer than any call to auth-service
// takes, and than a primary of Redis that has been replaced goes on answering.
const revokedMemory = int64(30 * time.Second)

func newTable() *table {
	t := &table{revoked: make(map[wire.ClientID]int64)}
	for i := range t.parts {
		t.parts[i].sessions = make(map[wire.ClientID]*session)
	}
	return t
}

func (t *table) part(id wire.ClientID) *tablePart { return &t.parts[id[0]] }

// claim makes s its device's session. older is the one it replaces. If there is one
// with a higher epoch, here or, as evict was told, elsewhere, s has lost: newest is false.
func (t *table) claim(s *session) (older *session, newest bool) {
	p := t.part(s.client)
	p.mu.Lock()
	defer p.mu.Unlock()
	older = p.sessions[s.client]
	if older != nil && older.epoch > s.epoch {
		return nil, false
	}
	if p.evicted[s.client].epoch > s.epoch {
		return nil, false
	}
	delete(p.evicted, s.client)
	p.sessions[s.client] = s
	return older, true
}

// remove takes a device's session out, unless another one has its place.
func (t *table) remove(id wire.ClientID, s *session) {
	p := t.part(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sessions[id] == s {
		delete(p.sessions, id)
	}
}

// find is the device's session; nil if it has none here.
func (t *table) find(id wire.ClientID) *session {
	p := t.part(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessions[id]
}

// evict takes out the device's session if its epoch is lower, and returns it. The epoch is remembered for a
// while: auth-service may have let in an older session here that has yet to claim its place.
func (t *table) evict(id wire.ClientID, epoch, now int64) *session {
	p := t.part(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteEvicted(id, eviction{epoch, now})
	s := p.sessions[id]
	if s == nil || s.epoch >= epoch {
		return nil
	}
	delete(p.sessions, id)
	return s
}

// noteEvicted remembers an eviction. mu is held.
func (p *tablePart) noteEvicted(id wire.ClientID, e eviction) {
	if e.at-p.swept > evictedMemory {
		for id, old := range p.evicted {
			if e.at-old.at > evictedMemory {
				delete(p.evicted, id)
			}
		}
		p.swept = e.at
	}
	if p.evicted[id].epoch > e.epoch {
		return
	}
	for other := range p.evicted {
		if len(p.evicted) < evictedMax {
			break
		}
		delete(p.evicted, other) // any one: there are too many
	}
	if p.evicted == nil {
		p.evicted = make(map[wire.ClientID]eviction)
	}
	p.evicted[id] = e
}

// all are the open sessions, of one moment for each part.
func (t *table) all() []*session {
	var list []*session
	for i := range t.parts {
		p := &t.parts[i]
		p.mu.Lock()
		for _, s := range p.sessions {
			list = append(list, s)
		}
		p.mu.Unlock()
	}
	return list
}

// page returns up to n sessions in the order of their client_id, from the one after the given (nil: from the
// first), and whether that was the end.
func (t *table) page(from *wire.ClientID, n int) (list []*session, last bool) {
	first := 0
	if from != nil {
		first = int(from[0])
	}
	for i := first; i < len(t.parts); i++ {
		list = append(list, t.parts[i].sorted(from)...)
		if len(list) > n {
			return list[:n], false
		}
	}
	return list, true
}

// sorted are the part's sessions after from.
func (p *tablePart) sorted(from *wire.ClientID) []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*session, 0, len(p.sessions))
	for id, s := range p.sessions {
		if from == nil || bytes.Compare(id[:], from[:]) > 0 {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *session) int { return bytes.Compare(a.client[:], b.client[:]) })
	return list
}

// noteRevoked remembers a revocation for sessions that are just opening.
func (t *table) noteRevoked(id wire.ClientID, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now-t.swept > revokedMemory {
		for id, at := range t.revoked {
			if now-at > revokedMemory {
				delete(t.revoked, id)
			}
		}
		t.swept = now
	}
	t.revoked[id] = now
}

// revokedLately reports whether a revocation was heard of in the last moments.
func (t *table) revokedLately(id wire.ClientID, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, ok := t.revoked[id]
	return ok && now-at <= revokedMemory
}

// takenOver ends a session whose device has a newer one. One that was asked to go
// does so without an ERROR, once what is in flight has been answered.
func (s *session) takenOver() {
	defer s.recoverFault() // it is the newer session's reader that says so
	switch asked, finishing := s.loseDevice(); {
	case finishing:
	case asked:
		s.end(string(wire.CodeTakenOver), nil)
	default:
		s.refuse(wire.Errorf(wire.CodeTakenOver, "the device has connected again"))
	}
}

// loseDevice notes that a newer session has the device. asked: the device had been sent GOAWAY; finishing: so the
// session ends when what is in flight has been answered.
func (s *session) loseDevice() (asked, finishing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = true
	asked = s.goneAt != 0
	if asked && s.state == stateOpen && len(s.inflight) > 0 {
		s.leaving = true
		s.finishBy = s.srv.now() + int64(s.srv.timings.finish)
		s.arm(s.finishBy)
		return true, true
	}
	return asked, false
}
