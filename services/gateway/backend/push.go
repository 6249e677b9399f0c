package backend

import (
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// push hands a message for a device on. Its result travels back when it is known,
// or when its time is over.
func (l *liveLink) push(f link.Frame) error {
	p, err := f.Push()
	if err != nil {
		return err
	}
	r := l.pool.router
	if r.cfg.OnPush == nil {
		return l.conn.PushResult(f.Stream, link.PushNotConnected)
	}
	entry := &push{deadline: r.clock() + int64(r.timing.push)}
	l.mu.Lock()
	_, twice := l.pushes[f.Stream]
	full := len(l.pushes) >= l.conn.Limits().MaxStreams
	if !twice && !full {
		l.pushes[f.Stream] = entry
	}
	l.mu.Unlock()
	switch {
	case twice:
		return wire.Errorf(wire.CodeBadFrame, "PUSH of stream %d, which is in flight", f.Stream)
	case full:
		return l.conn.PushResult(f.Stream, link.PushQueueFull)
	}
	stream := f.Stream
	r.cfg.OnPush(p.ClientID, p.Service, p.Body, func(result link.PushResult) { l.pushed(stream, entry, result) })
	return nil
}

// pushed sends a push's result, the first that is known.
func (l *liveLink) pushed(stream uint64, entry *push, result link.PushResult) {
	l.mu.Lock()
	first := l.pushes[stream] == entry
	if first {
		delete(l.pushes, stream)
	}
	l.mu.Unlock()
	if first {
		_ = l.conn.PushResult(stream, result) // or the link is ending, and nobody waits
		l.finishIfIdle()
	}
}

// latePushes takes out those whose time is over.
func (l *liveLink) latePushes(now int64) (streams []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for stream, entry := range l.pushes {
		if entry.deadline <= now {
			delete(l.pushes, stream)
			streams = append(streams, stream)
		}
	}
	return streams
}
