// Package device keeps the registered devices in Redis: the allowlist, and who is blocked.
//
// A device is the hash goshield:device:{client_id}, in the slot of its token record, so that the
// script that enrols reads both at once. For listing them there are sixteen sets,
// goshield:devices:{0} to {f} by the first digit of the client_id. A set may hold a device that is
// gone (a removal cut short), never the other way round.
package device

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

const digits = "0123456789abcdef"

// Key is the key of a device's registration: a hash whose field blocked is "0" or "1".
func Key(id wire.ClientID) string { return "goshield:device:{" + id.String() + "}" }

// setKey is the set that lists devices of a first digit.
func setKey(digit int) string { return "goshield:devices:{" + digits[digit:digit+1] + "}" }

func setOf(id wire.ClientID) string { return setKey(int(id[0] >> 4)) }

// Registry is all registrations. It is safe for concurrent use. Its operations may be
// repeated when they fail.
type Registry struct {
	rdb redis.UniversalClient
}

// NewRegistry keeps registrations in rdb, which stays the caller's to close.
func NewRegistry(rdb redis.UniversalClient) *Registry { return &Registry{rdb: rdb} }

// Put registers a device. blocked nil leaves a registered device as it is, and a
// new one unblocked.
func (r *Registry) Put(ctx context.Context, id wire.ClientID, blocked *bool) (authapi.DeviceState, error) {
	if err := r.rdb.SAdd(ctx, setOf(id), id[:]).Err(); err != nil {
		return authapi.DeviceState{}, fmt.Errorf("register: %w", err)
	}
	var err error
	if blocked == nil {
		err = r.rdb.HSetNX(ctx, Key(id), "blocked", "0").Err()
	} else {
		err = r.rdb.HSet(ctx, Key(id), "blocked", flag(*blocked)).Err()
	}
	if err != nil {
		return authapi.DeviceState{}, fmt.Errorf("register: %w", err)
	}
	value, err := r.rdb.HGet(ctx, Key(id), "blocked").Result()
	if err != nil {
		return authapi.DeviceState{}, fmt.Errorf("register: %w", err)
	}
	return authapi.DeviceState{ClientID: id, Blocked: value == "1"}, nil
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// Remove forgets a device, blocked or not. One that is not there is no error.
func (r *Registry) Remove(ctx context.Context, id wire.ClientID) error {
	if err := r.rdb.Del(ctx, Key(id)).Err(); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if err := r.rdb.SRem(ctx, setOf(id), id[:]).Err(); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// ErrCursor is the error of a List with a cursor that List never gave.
var ErrCursor = errors.New("not a cursor of this list")

// List returns some devices, about limit of them, and where to go on: "" after the last. Each
// device that is registered from the first call to the last is listed, perhaps twice.
func (r *Registry) List(ctx context.Context, cursor string, limit int) (authapi.DeviceList, error) {
	digit, at, err := parseCursor(cursor)
	if err != nil {
		return authapi.DeviceList{}, err
	}
	list := authapi.DeviceList{Devices: []authapi.DeviceState{}}
	for digit < len(digits) && len(list.Devices) < limit {
		members, next, err := r.rdb.SScan(ctx, setKey(digit), at, "", int64(limit)).Result()
		if err != nil {
			return authapi.DeviceList{}, fmt.Errorf("list: %w", err)
		}
		found, err := r.states(ctx, members)
		if err != nil {
			return authapi.DeviceList{}, fmt.Errorf("list: %w", err)
		}
		list.Devices = append(list.Devices, found...)
		if at = next; at == 0 {
			digit++
		}
	}
	if digit < len(digits) {
		list.Cursor = digits[digit:digit+1] + "-" + strconv.FormatUint(at, 10)
	}
	return list, nil
}

// states reads the registrations of a set's members; those that have none are left out.
func (r *Registry) states(ctx context.Context, members []string) ([]authapi.DeviceState, error) {
	if len(members) == 0 {
		return nil, nil
	}
	ids := make([]wire.ClientID, 0, len(members))
	for _, m := range members {
		if len(m) != len(wire.ClientID{}) {
			return nil, fmt.Errorf("a member of %d bytes is no client_id", len(m))
		}
		ids = append(ids, wire.ClientID([]byte(m)))
	}
	cmds := make([]*redis.StringCmd, len(ids))
	_, _ = r.rdb.Pipelined(ctx, func(p redis.Pipeliner) error { // each command has its own error
		for i, id := range ids {
			cmds[i] = p.HGet(ctx, Key(id), "blocked")
		}
		return nil
	})
	var found []authapi.DeviceState
	for i, cmd := range cmds {
		switch value, err := cmd.Result(); {
		case err == nil:
			found = append(found, authapi.DeviceState{ClientID: ids[i], Blocked: value == "1"})
		case !errors.Is(err, redis.Nil):
			return nil, err
		}
	}
	return found, nil
}

func parseCursor(text string) (digit int, at uint64, err error) {
	if text == "" {
		return 0, 0, nil
	}
	first, rest, ok := strings.Cut(text, "-")
	if digit = strings.Index(digits, first); !ok || len(first) != 1 || digit < 0 {
		return 0, 0, ErrCursor
	}
	if at, err = strconv.ParseUint(rest, 10, 64); err != nil {
		return 0, 0, ErrCursor
	}
	return digit, at, nil
}
