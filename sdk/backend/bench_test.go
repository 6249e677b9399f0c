package backend_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
)

// BenchmarkEcho is a round trip of 64 bytes through a Server; the test's own end of the
// link is included.
func BenchmarkEcho(b *testing.B) {
	for _, inFlight := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			g := dial(b, start(b, &backend.Server{Handler: echo}), "gw")
			body := make([]byte, 64)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for n := range inFlight {
				wg.Go(func() {
					answered := make(chan answer, 1)
					for range b.N/inFlight + n%2 {
						id, err := g.streams.Open(answered)
						if err != nil {
							b.Error(err)
							return
						}
						if err := g.conn.Request(id, &link.Request{Service: "echo", JSON: true, Body: body}); err != nil {
							b.Error(err)
							return
						}
						<-answered
					}
				})
			}
			wg.Wait()
		})
	}
}
