package registry

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/redis/go-redis/v9"
)

// Revocations come twice: announced on a channel, at once and without promise, and in a
// stream, read within each recheck, of which nothing is missed that it still holds.

// streamKeeps is how long an entry surely stays in the stream (docs/PROTOCOL.md, Revocation). A
// reader that was away for longer may have missed some.
const streamKeeps = 30 * time.Second

// Revocation is a device's token that is no longer good.
type Revocation struct {
	ClientID wire.ClientID
	Code     wire.Code // revoked or token_reused
	// Epoch is that of the revoked record: sessions up to it are meant, and one of a later epoch if its record says so. 0: it was not told.
	Epoch int64
	// Announced: it happened just now. Else the stream tells of it, once more or for the first time, and
	// the device may have enrolled again since.
	Announced bool
}

// followStream reads the stream from its end at the time of the first contact. It ends when
// ctx does.
func (r *Registry) followStream() {
	var last string // the last entry seen; "" before the first contact
	var seen time.Time
	for {
		began := time.Now()
		missed, err := r.readStream(&last)
		r.report(taskStream, err)
		// From one read's beginning to the next one's there is less than a recheck, so that within one an entry is
		// found and what follows from it done.
		next := began.Add(r.cfg.Recheck() * 4 / 5)
		switch {
		case err != nil:
			next = time.Now().Add(min(r.cfg.Recheck(), retryEvery))
		case seen.IsZero(), missed, wallSince(seen) > streamKeeps:
			r.note(func() { r.streamRead = true })
			r.cfg.OnGap("the stream of revocations may hold less than has happened since it was read")
			fallthrough
		default:
			seen = time.Now()
		}
		if !r.pause(time.Until(next)) {
			return
		}
	}
}

// beginning is before every entry of a stream.
const beginning = "0-0"

// readStream hears what came after last, in the order of its coming, and moves it. missed: the entry at last is there no more. Either the stream has
// grown beyond what it holds since, or a failover has lost its end: entries may have come that nobody will read.
func (r *Registry) readStream(last *string) (missed bool, err error) {
	rdb, err := r.Client()
	if err != nil {
		return false, err
	}
	if *last == "" {
		return false, r.skipStream(rdb, last)
	}
	known := *last != beginning
	for {
		page, err := r.readPage(rdb, *last)
		if err != nil {
			return false, err
		}
		if known && (len(page) == 0 || page[0].ID != *last) {
			// Every session will be compared with its record, which says whatever the entries do. They may even
			// be earlier than last, by the clock of another primary.
			return true, r.skipStream(rdb, last)
		}
		full := len(page) == streamPage
		if known {
			page = page[1:]
		}
		if len(page) > 0 {
			*last, known = page[len(page)-1].ID, true
		}
		for _, m := range page {
			r.heardInStream(m)
		}
		if !full {
			return false, nil
		}
	}
}

func (r *Registry) heardInStream(m redis.XMessage) {
	id, _ := m.Values["client_id"].(string)
	code, _ := m.Values["code"].(string)
	text, _ := m.Values["epoch"].(string)
	epoch, _ := strconv.ParseInt(text, 10, 64) // 0 where it is missing, as an older auth-service's may
	r.heard(id, code, epoch, false)
}

// readPage reads from an entry on.
func (r *Registry) readPage(rdb redis.UniversalClient, from string) ([]redis.XMessage, error) {
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	return rdb.XRangeN(ctx, revokedName, from, "+", streamPage).Result()
}

// skipStream moves last to the stream's end.
func (r *Registry) skipStream(rdb redis.UniversalClient, last *string) error {
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	newest, err := rdb.XRevRangeN(ctx, revokedName, "+", "-", 1).Result()
	if err != nil {
		return err
	}
	*last = beginning
	if len(newest) == 1 {
		*last = newest[0].ID
	}
	return nil
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
				r.heard(id, code, 0, true)
			}
		case <-r.ctx.Done():
			return
		}
	}
}

// heard hands a revocation on.
func (r *Registry) heard(idText, code string, epoch int64, announced bool) {
	id, err := wire.ParseClientID(idText)
	if err != nil {
		r.cfg.Log.Warn("revocation without a client_id")
		return
	}
	r.cfg.OnRevoked(Revocation{ClientID: id, Code: knownCode(code), Epoch: epoch, Announced: announced})
}

// knownCode is the code of a revocation; one that a newer auth-service may
// have is a revocation, too.
func knownCode(text string) wire.Code {
	if wire.Code(text) == wire.CodeTokenReused {
		return wire.CodeTokenReused
	}
	return wire.CodeRevoked
}
