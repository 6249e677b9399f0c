package link_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// BenchmarkRoundTrip sends a 64-byte request and waits for its answer, with so many
// in flight; both ends and a table of streams are included.
func BenchmarkRoundTrip(b *testing.B) {
	for _, inFlight := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			gateway, backend := pair(b, link.Config{}, link.Config{})
			backendEnded := served(backend, func(f link.Frame) error {
				r, err := f.Request()
				if err != nil {
					return err
				}
				return backend.Respond(f.Stream, r.Body)
			})
			streams := link.NewStreams[chan struct{}](link.Gateway, gateway.Limits().MaxStreams)
			gatewayEnded := served(gateway, func(f link.Frame) error {
				if ch, ok := streams.Take(f.Stream); ok {
					ch <- struct{}{}
				}
				return nil
			})
			body := make([]byte, 64)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for n := range inFlight {
				wg.Go(func() {
					answered := make(chan struct{}, 1)
					for range b.N/inFlight + n%2 {
						id, err := streams.Open(answered)
						if err != nil {
							b.Error(err)
							return
						}
						if err := gateway.Request(id, &link.Request{ClientID: wire.ClientID{1}, Service: "echo", JSON: true, Body: body}); err != nil {
							b.Error(err)
							return
						}
						<-answered
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			gateway.Close()
			backend.Close()
			<-gatewayEnded
			<-backendEnded
		})
	}
}
