package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"time"

	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// A device and, for the sake of the example, a gateway of a few lines that takes any device and echoes.
func Example() {
	device, gateway := net.Pipe()
	go func() { // ends when the device hangs up
		r := wire.NewReader(gateway, wire.DefaultMaxPayload)
		for {
			f, err := r.Next()
			if err != nil {
				return
			}
			var answer wire.Message
			switch f.Type {
			case wire.TypeHello:
				answer = &wire.Welcome{
					Token: wire.Token{1}, ExpiresAt: time.Now().Add(time.Hour), Heartbeat: time.Minute,
					IdleTimeout: time.Minute, MaxFrame: wire.DefaultMaxPayload, Session: "1",
				}
			case wire.TypeRequest:
				var req wire.Request
				_ = wire.Unmarshal(f.Version, f.Payload, &req)
				answer = &wire.Response{ID: req.ID, Body: req.Body}
			default:
				return
			}
			out, _ := wire.Append(nil, f.Version, answer)
			_, _ = gateway.Write(out)
		}
	}()

	id, err := wire.ClientIDFromMAC("00:1a:2b:3c:4d:5e")
	if err != nil {
		panic(err)
	}
	c, err := client.Dial(context.Background(), client.Config{
		Addr:        "gateway.example.org:8443",
		DialContext: func(context.Context, string, string) (net.Conn, error) { return device, nil },
		ClientID:    id,
	})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	answer, err := c.Request(context.Background(), "echo", []byte(`{"hello":"world"}`))
	fmt.Println(string(answer), err)
	// Output: {"hello":"world"} <nil>
}

func ExampleDial() {
	ctx := context.Background()
	id, err := wire.ClientIDFromMAC("00:1a:2b:3c:4d:5e")
	if err != nil {
		log.Fatal(err)
	}
	store, err := client.FileStore("/var/lib/meter/goshield")
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.Dial(ctx, client.Config{
		Addr:       "gateway.example.org:8443",
		TLS:        &tls.Config{MinVersion: tls.VersionTLS12},
		ClientID:   id,
		TokenStore: store,
		OnPush:     func(p client.Push) { fmt.Printf("%s says %s\n", p.Service, p.Body) },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	answer, err := c.Request(ctx, "echo", []byte(`{"hello":"world"}`))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer)
}

// What a caller may do about an error depends on its kind.
func ExampleClient_Request() {
	var c *client.Client // made by Dial
	_, err := c.Request(context.Background(), "payments", []byte(`{"cents":995}`))
	var refusal *wire.Error
	switch {
	case err == nil:
	case errors.As(err, &refusal) && refusal.Code == wire.CodeRateLimited:
		fmt.Println("not carried out; try again in", refusal.RetryAfter)
	case errors.Is(err, client.ErrConnectionLost):
		fmt.Println("perhaps carried out: ask the service before paying again")
	default:
		fmt.Println(err)
	}
}
