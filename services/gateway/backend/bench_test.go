package backend

import (
	"fmt"
	"testing"

	"github.com/goshield/goshield/internal/dynamic"
	sdk "github.com/goshield/goshield/sdk/backend"
)

// BenchmarkRoundTrip is a request of 64 bytes from Send to Done, over loopback, to an echo
// of the SDK's; its allocations are the backend's.
func BenchmarkRoundTrip(b *testing.B) {
	for _, inFlight := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			r := newTestRouter(b, nil)
			r.apply(map[string]dynamic.Service{"echo": serviceAt(serve(b, &sdk.Server{Handler: echo}))})
			free := make(chan uint32, inFlight)
			for i := range inFlight {
				free <- uint32(i)
			}
			w := waiterFunc(func(tag uint32, got Reply) {
				if got.Err != nil {
					b.Error(got.Err)
				}
				free <- tag
			})
			body := []byte(`"` + fmt.Sprintf("%062d", 1) + `"`)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				r.Send(Request{Service: "echo", Body: body, JSON: true}, w, <-free)
			}
			for range inFlight {
				<-free
			}
		})
	}
}
