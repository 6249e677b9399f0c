package token

import (
	_ "embed"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/goshield/goshield/sdk/wire"
)

var (
	//go:embed lua/record.lua
	luaRecord string
	//go:embed lua/issue.lua
	luaIssue string
	//go:embed lua/verify.lua
	luaVerify string
	//go:embed lua/rotate.lua
	luaRotate string
	//go:embed lua/release.lua
	luaRelease string
	//go:embed lua/revoke.lua
	luaRevoke string
)

// script is a Lua script and the name Redis caches it under.
type script struct {
	source string
	sha    string
}

func newScript(source string) script {
	return script{source: source, sha: redis.NewScript(source).Hash()}
}

// scripts are the operations.
type scripts struct {
	issue, verify, rotate, release, revoke script
}

func newScripts() scripts {
	return scripts{
		issue:   newScript(luaRecord + luaIssue),
		verify:  newScript(luaRecord + luaVerify),
		rotate:  newScript(luaRecord + luaRotate),
		release: newScript(luaRelease),
		revoke:  newScript(luaRecord + luaRevoke),
	}
}

// The results that scripts answer beside error codes and authapi.Results.
const (
	answerOK      = "ok"
	answerUnknown = string(wire.CodeUnknownClient)
	// answerOvertaken is a rotation's: there is a next token that the caller did not name. Its hash stands in place of was.
	answerOvertaken = "overtaken"
)

// reply is what the scripts' function answer returns.
type reply struct {
	code        string
	now         int64 // Unix ms, Redis's clock
	expires     int64 // Unix ms
	prevUntil   int64 // Unix ms
	generation  int64
	epoch       int64
	was         string
	unannounced bool
}

func parseReply(cmd *redis.Cmd) (reply, error) {
	values, err := cmd.Slice()
	if err != nil {
		return reply{}, err
	}
	if len(values) != 8 {
		return reply{}, fmt.Errorf("script answered %d values, want 8", len(values))
	}
	var r reply
	var flag int64
	for i, to := range []any{&r.code, &r.now, &r.expires, &r.prevUntil, &r.generation, &r.epoch, &r.was, &flag} {
		ok := false
		switch to := to.(type) {
		case *string:
			*to, ok = values[i].(string)
		case *int64:
			*to, ok = values[i].(int64)
		}
		if !ok {
			return reply{}, fmt.Errorf("script answered a %T as value %d", values[i], i+1)
		}
	}
	r.unannounced = flag == 1
	return r, nil
}

// record is the reply as callers see it.
func (r reply) record() Record {
	return Record{
		Generation:    r.generation,
		Epoch:         r.epoch,
		ExpiresAt:     time.UnixMilli(r.expires),
		ExpiresIn:     time.Duration(r.expires-r.now) * time.Millisecond,
		GraceLeft:     max(0, time.Duration(r.prevUntil-r.now)*time.Millisecond),
		PreviousOwner: r.was,
	}
}

func (r reply) refusal() *Refusal {
	refused := &Refusal{Code: wire.Code(r.code), Generation: r.generation, Unfinished: r.unannounced}
	if refused.Code == wire.CodeRateLimited {
		refused.RetryAfter = time.Duration(r.expires-r.now) * time.Millisecond
	}
	return refused
}
