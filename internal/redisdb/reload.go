package redisdb

import (
	"context"
	"errors"
	"net"

	"github.com/redis/go-redis/v9"
)

// reloader has a cluster's client read the map of the slots anew when a command got no answer. By
// itself the client does so only when a server redirects it, and each stateReload: where a primary is
// dead nobody does, and its replica would stay unknown for long after it took over.
type reloader struct{ cluster *redis.ClusterClient }

var _ redis.Hook = reloader{}

// DialHook implements redis.Hook.
func (r reloader) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (r reloader) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		r.saw(ctx, err)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (r reloader) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		r.saw(ctx, err)
		return err
	}
}

// saw starts a reload, unless one is under way, where err is no server's answer.
func (r reloader) saw(ctx context.Context, err error) {
	var answered redis.Error
	if err == nil || errors.As(err, &answered) && !redis.IsClusterDownError(err) || errors.Is(err, context.Canceled) {
		return
	}
	r.cluster.ReloadState(ctx)
}
