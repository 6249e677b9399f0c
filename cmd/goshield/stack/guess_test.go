package stack

import (
	"net"
	"testing"

	"github.com/goshield/goshield/sdk/wire"
)

// Row 43: somebody guesses a device's token from an address of his own. He is limited, even when he has it right in the
// end; the device, at its address, notices nothing.
func TestGuessing(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		f := start(t, quickDocument(), redis)
		id := f.device(t, nil).ClientID
		victim := f.raw(t)
		token := victim.hello(id, wire.Token{}).Token
		guess := func(token wire.Token) (e wire.Error) {
			d := &rawDevice{t: t, f: f, from: net.IPv4(127, 0, 0, 2)}
			d.dial()
			d.decode(d.opening(id, token), &e)
			d.lastWord(e, e.Code)
			return e
		}
		wrong := 0
		var e wire.Error
		for e = guess(wire.Token{1}); e.Code == wire.CodeBadToken && wrong < 50; e = guess(wire.Token{1, byte(wrong)}) {
			wrong++
		}
		if e.Code != wire.CodeRateLimited || e.RetryAfter <= 0 {
			t.Fatalf("after %d guesses: %+v, want rate_limited, and when to come back", wrong, e)
		}
		if e := guess(token); e.Code != wire.CodeRateLimited {
			t.Errorf("the right token from there: %+v, want rate_limited", e)
		}
		victim.ask(1, token)
		victim = f.raw(t) // also when it comes anew
		victim.hello(id, token)
		victim.ask(1, token)
	})
}
