package redistest_test

import (
	"testing"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/internal/redistest"
)

func TestMain(m *testing.M) {
	redisdb.LogTo(zap.NewNop()) // lost connections are what it is about
	redistest.VerifyTestMain(m)
}

// TestOwn: a cluster of one's own survives the loss of a primary, and is whole again with it.
func TestOwn(t *testing.T) {
	c := redistest.StartOwn(t)
	rdb := c.Open()
	redistest.Until(t, "a key is set", func() bool { return rdb.Set(t.Context(), "k", "v", 0).Err() == nil })
	primary, replica := c.Shard("k")
	redistest.Until(t, "the replica has the key", func() bool { return primary.Client().Wait(t.Context(), 1, 0).Val() == 1 })
	primary.Kill()
	redistest.Until(t, "the replica takes over", replica.IsPrimary)
	redistest.Until(t, "the key can be read", func() bool { return rdb.Get(t.Context(), "k").Val() == "v" })
	primary.Start()
	c.AwaitWhole()
	if now, _ := c.Shard("k"); now != replica {
		t.Errorf("the primary is %s, want %s", now.Addr(), replica.Addr())
	}
}
