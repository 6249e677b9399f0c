package registry

import (
	"context"
	"strings"
	"time"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/redis/go-redis/v9"
)

// Revocations come twice: announced on a channel, at once and without promise, and in a
// stream, read each recheck, of which nothing is missed that it still holds.

// streamKeeps is how long an entry surely stays in the stream (docs/PROTOCOL.md, Revocation). A
// reader that was away for longer may have missed some.
const streamKeeps = 30 * time.Second

// followStream reads the stream from its end at the time of the first contact. It ends when
// ctx does.
func (r *Registry) followStream() {
	var last string // the last entry seen; "" before the first contact
	var seen time.Time
	for {
		entries, err := r.readStream(&last)
		r.report(taskStream, err)
		wait := r.cfg.Recheck()
		switch {
		case err != nil:
			wait = min(wait, retryEvery)
		case seen.IsZero(), wallSince(seen) > streamKeeps:
			r.note(func() { r.streamRead = true })
			r.cfg.OnGap("the stream of revocations was not read until now")
			fallthrough
		default:
			seen = time.Now()
		}
		for _, m := range entries {
			id, _ := m.Values["client_id"].(string)
			code, _ := m.Values["code"].(string)
			r.heard(id, code, false)
		}
		if !r.pause(wait) {
			return
		}
	}
}

// readStream returns what came after last, and moves it.
func (r *Registry) readStream(last *string) ([]redis.XMessage, error) {
	rdb, err := r.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	if *last == "" {
		newest, err := rdb.XRevRangeN(ctx, revokedName, "+", "-", 1).Result()
		if err != nil {
			return nil, err
		}
		*last = "0-0"
		if len(newest) == 1 {
			*last = newest[0].ID
		}
		return nil, nil
	}
	var all []redis.XMessage
	for {
		page, err := rdb.XRangeN(ctx, revokedName, "("+*last, "+", streamPage).Result()
		if err != nil {
			return all, err
		}
		if len(page) > 0 {
			*last = page[len(page)-1].ID
		}
		all = append(all, page...)
		if len(page) < streamPage {
			return all, nil
		}
	}
}

// followChannel listens to the announcements; the client subscribes again by itself after a failure. It
// ends when ctx does.
func (r *Registry) followChannel() {
	rdb, err := r.Client()
	if err != nil {
		return // run starts this after the client is there
	}
	sub := rdb.Subscribe(r.ctx, revokedName)
	defer sub.Close()
	announced := sub.ChannelWithSubscriptions()
	for {
		select {
		case m, ok := <-announced:
			if !ok {
				return
			}
			switch m := m.(type) {
			case *redis.Subscription:
				r.note(func() { r.subscribed = true })
			case *redis.Message:
				id, code, _ := strings.Cut(m.Payload, " ")
				r.heard(id, code, true)
			}
		case <-r.ctx.Done():
			return
		}
	}
}

// heard hands a revocation on.
func (r *Registry) heard(idText, code string, announced bool) {
	id, err := wire.ParseClientID(idText)
	if err != nil {
		r.cfg.Log.Warn("revocation without a client_id")
		return
	}
	r.cfg.OnRevoked(id, knownCode(code), announced)
}

// knownCode is the code of a revocation; one that a newer auth-service may
// have is a revocation, too.
func knownCode(text string) wire.Code {
	if wire.Code(text) == wire.CodeTokenReused {
		return wire.CodeTokenReused
	}
	return wire.CodeRevoked
}
