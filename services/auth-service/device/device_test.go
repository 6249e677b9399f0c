package device_test

import (
	"context"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/redistest"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/auth-service/device"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

func newID() (id wire.ClientID) {
	_, _ = rand.Read(id[:])
	return id
}

func TestPut(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		r, id := device.NewRegistry(rdb), newID()
		yes, no := true, false
		for i, step := range []struct {
			blocked *bool
			want    bool
		}{{nil, false}, {&yes, true}, {nil, true}, {&no, false}, {nil, false}} {
			got, err := r.Put(t.Context(), id, step.blocked)
			if err != nil || got != (authapi.DeviceState{ClientID: id, Blocked: step.want}) {
				t.Errorf("Put() %d = %+v, %v, want blocked %v", i+1, got, err, step.want)
			}
		}
		for range 2 {
			if err := r.Remove(t.Context(), id); err != nil {
				t.Errorf("Remove() = %v, want nil", err)
			}
		}
		if n := rdb.Exists(t.Context(), device.Key(id)).Val(); n != 0 {
			t.Error("the key is still there")
		}
	})
}

// TestList lists every device once (or more), page by page, among those of others.
func TestList(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rdb redis.UniversalClient) {
		r := device.NewRegistry(rdb)
		want := map[wire.ClientID]bool{}
		blocked := true
		for i := range 100 {
			id := newID()
			want[id] = i%3 == 0
			var b *bool
			if want[id] {
				b = &blocked
			}
			if _, err := r.Put(t.Context(), id, b); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Remove(context.Background(), id) })
		}
		half := newID() // its removal was cut short
		if _, err := r.Put(t.Context(), half, nil); err != nil {
			t.Fatal(err)
		}
		rdb.Del(t.Context(), device.Key(half))
		t.Cleanup(func() { _ = r.Remove(context.Background(), half) })

		pages, cursor := 0, ""
		for more := true; more; more = cursor != "" {
			list, err := r.List(t.Context(), cursor, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list.Devices {
				if d.ClientID == half {
					t.Error("a device without a registration is listed")
				}
				if b, ok := want[d.ClientID]; ok && b != d.Blocked {
					t.Errorf("device blocked %v, want %v", d.Blocked, b)
				}
				delete(want, d.ClientID)
			}
			cursor = list.Cursor
			pages++
		}
		if len(want) != 0 || pages < 5 {
			t.Errorf("%d devices are missing after %d pages, want none, after several", len(want), pages)
		}
	})
}

func TestCursor(t *testing.T) {
	_, rdb := redistest.Embedded(t)
	r := device.NewRegistry(rdb)
	for _, cursor := range []string{"x", "-1", "0", "g-0", "00-1", "0--1", "0-x", "0-18446744073709551616"} {
		if _, err := r.List(t.Context(), cursor, 1); !errors.Is(err, device.ErrCursor) {
			t.Errorf("List(%q) = %v, want ErrCursor", cursor, err)
		}
	}
	if list, err := r.List(t.Context(), "", 1); err != nil || list.Devices == nil || list.Cursor != "" {
		t.Errorf("List of nothing = %+v, %v, want an empty list", list, err)
	}
}
