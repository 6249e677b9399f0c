package backend_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// An echo. What follows the server plays the gateway: it sends one request and
// prints the answer.
func Example() {
	srv := &backend.Server{
		Secrets: []string{"the gateways' backend secret"},
		Log:     slog.New(slog.DiscardHandler),
		Handler: func(ctx context.Context, req backend.Request) (backend.Response, error) {
			return backend.Response{Body: req.Body}, nil
		},
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() { _ = srv.Serve(ln) }() // ends with Shutdown

	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		panic(err)
	}
	gateway, err := link.Open(context.Background(), nc, link.Config{Node: "gw-1", Secret: "the gateways' backend secret"})
	if err != nil {
		panic(err)
	}
	_ = gateway.Request(2, &link.Request{ClientID: wire.ClientID{1}, Service: "echo", JSON: true, Body: []byte(`{"hello":"world"}`)})
	_ = gateway.Serve(func(f link.Frame) error {
		fmt.Printf("%s of stream %d: %s\n", f.Type, f.Stream, f.Payload)
		gateway.Finish()
		return nil
	})
	_ = srv.Shutdown(context.Background())
	// Output: RESPONSE of stream 2: {"hello":"world"}
}
