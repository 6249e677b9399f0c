// client is the demo's device: it says hello, sends requests and heartbeats,
// uses a new token when it gets one, and then sends too fast. Run it as
// `go run client.go localhost 8080`.
package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/goshield/goshield/demo/frames"
	"github.com/goshield/goshield/sdk/wire"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("client: ")
	if len(os.Args) != 3 {
		log.Fatal("usage: client HOST PORT")
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(os.Args[1], os.Args[2]))
	frames.Check(err)
	c := frames.New(conn)
	clientID, err := wire.ClientIDFromMAC("00:1a:2b:3c:4d:5e")
	frames.Check(err)
	var welcome wire.Welcome
	frames.Check(c.Ask(&wire.Hello{ClientID: clientID, Agent: "demo"}, &welcome))
	fmt.Printf("WELCOME        %s gave us a token and wants a heartbeat each %s\n", welcome.Session, welcome.Heartbeat)
	token := welcome.Token
	for id := range uint32(18) {
		request(c, wire.Request{ID: id + 1, Token: token, Service: "echo", Body: fmt.Appendf(nil, `"hello %d"`, id+1)})
		if id >= 5 {
			continue // from here on faster than the server allows
		}
		time.Sleep(welcome.Heartbeat)
		var ack wire.HeartbeatAck
		frames.Check(c.Ask(&wire.Heartbeat{Token: token}, &ack))
		if fmt.Print("HEARTBEAT_ACK"); !ack.Token.IsZero() {
			token = ack.Token
			fmt.Print("  with a new token, used from now on")
		}
		fmt.Println()
	}
	frames.Check(c.Send(&wire.Bye{}))
	frames.Check(c.Close())
}

// request sends one request and prints what became of it.
func request(c *frames.Conn, r wire.Request) {
	var resp wire.Response
	err := c.Ask(&r, &resp)
	if e := (*wire.Error)(nil); errors.As(err, &e) && e.Code == wire.CodeRateLimited {
		fmt.Printf("ERROR          %s, try again in %s\n", e, e.RetryAfter)
	} else if frames.Check(err); err == nil {
		fmt.Printf("RESPONSE %-5d %s\n", resp.ID, resp.Body)
	}
}
