// server is the demo's gateway and backend in one: it answers what a device
// sends. Run it as `go run server.go 8081`.
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/goshield/goshield/demo/frames"
	"github.com/goshield/goshield/internal/accept"
	"github.com/goshield/goshield/internal/bucket"
	"github.com/goshield/goshield/sdk/wire"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: server PORT")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	frames.Check(err)
	name := fmt.Sprint("server ", ln.Addr().(*net.TCPAddr).Port)
	log.SetPrefix(name + ": ")
	log.Println("listening on", ln.Addr())
	accept.Loop(ln, func(c net.Conn) {
		d := &device{server: name, limit: bucket.NewLimit(2, 6)} // two a second, six at once
		go frames.Serve(c, d.answer)                             // ends with the connection
	}, nil)
}

// device is one connection's state.
type device struct {
	server string
	tokens frames.Tokens
	limit  bucket.Limit  // of requests
	taken  bucket.Bucket // how far it is used up
}

// answer is the reply to one frame.
func (d *device) answer(f wire.Frame) wire.Message {
	var hello wire.Hello
	var req wire.Request
	var beat wire.Heartbeat
	hour := time.Now().Add(time.Hour)
	switch {
	case f.Type == wire.TypeHello && wire.Unmarshal(f.Version, f.Payload, &hello) == nil:
		log.Println("hello from device", hello.ClientID.String()[:8])
		return &wire.Welcome{Token: d.tokens.First(), ExpiresAt: hour, Heartbeat: 500 * time.Millisecond, IdleTimeout: time.Minute, MaxFrame: wire.DefaultMaxPayload, Session: d.server}
	case f.Type == wire.TypeHeartbeat && wire.Unmarshal(f.Version, f.Payload, &beat) == nil && d.tokens.Knows(beat.Token):
		return &wire.HeartbeatAck{Token: d.tokens.Next(), ExpiresAt: hour}
	case f.Type == wire.TypeRequest && wire.Unmarshal(f.Version, f.Payload, &req) == nil && d.tokens.Knows(req.Token):
		if ok, retry := d.limit.Take(&d.taken, time.Now().UnixNano(), 1); !ok {
			return &wire.Error{Code: wire.CodeRateLimited, Message: "slow down", ID: req.ID, HasID: true, RetryAfter: retry}
		}
		return &wire.Response{ID: req.ID, Body: fmt.Appendf(nil, `{"echo":%s,"from":"%s"}`, req.Body, d.server)}
	}
	return &wire.Error{Code: wire.CodeBadToken, Message: "not a frame, or not a token, that is good here", Close: true}
}
