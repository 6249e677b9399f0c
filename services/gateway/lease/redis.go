package lease

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/redis/go-redis/v9"
)

//go:embed lease.lua
var luaLease string

// redisSource leases tokens with one script.
type redisSource struct {
	client func() (redis.UniversalClient, error)
	script *redis.Script
}

// Redis is the Source that all gateways share. client may answer an error while there is none yet.
func Redis(client func() (redis.UniversalClient, error)) Source {
	return &redisSource{client: client, script: redis.NewScript(luaLease)}
}

// bucketKey is a limit's bucket; its hash tag keeps the limit's keys in one slot.
func bucketKey(name string) string { return "goshield:limit:{" + name + "}" }

// nodesKey is who leases from it.
func nodesKey(name string) string { return bucketKey(name) + ":nodes" }

// Lease implements Source. Asked twice by the client because an answer was lost, it leases twice: tokens are lost then,
// never given twice.
func (s *redisSource) Lease(ctx context.Context, a Ask) (leased int64, nodes int, err error) {
	rdb, err := s.client()
	if err != nil {
		return 0, 0, err
	}
	drain := 0
	if a.Drain {
		drain = 1
	}
	answer, err := s.script.Run(ctx, rdb, []string{bucketKey(a.Name), nodesKey(a.Name)},
		a.Rule.Rate, a.Rule.Burst, a.Wanted, a.Owed, drain, a.Node, lapse.Milliseconds()).Int64Slice()
	if err != nil {
		return 0, 0, fmt.Errorf("lease from %s: %w", bucketKey(a.Name), err)
	}
	return answer[0], int(answer[1]), nil
}
