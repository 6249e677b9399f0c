package backend

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// A call whose deadline has passed, or that was cancelled, before a worker came to it is not begun; it leaves nothing behind.
func TestCallThatIsOverIsNotBegun(t *testing.T) {
	near, far := net.Pipe()
	srv := &Server{Handler: func(context.Context, Request) (Response, error) {
		t.Error("the handler was called")
		return Response{}, nil
	}}
	accepted := make(chan *link.Conn)
	go func() {
		c, err := link.Accept(context.Background(), far, link.Config{}, func(string) bool { return true })
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	gateway, err := link.Open(context.Background(), near, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	conn := <-accepted
	if conn == nil {
		t.FailNow()
	}
	l := newGatewayLink(srv, conn)
	ended := make(chan error, 2)
	answers := make(chan *wire.Error, 10)
	go func() { ended <- conn.Serve(func(link.Frame) error { return nil }) }()
	go func() {
		ended <- gateway.Serve(func(f link.Frame) error {
			e, err := f.Error()
			answers <- e
			return err
		})
	}()
	late := &call{link: l, stream: 2, callContext: callContext{deadline: time.Now()}}
	cancelled := &call{link: l, stream: 4}
	l.running[2], l.running[4] = late, cancelled
	l.cancel(4)
	cancelled.run() // answers nothing: what comes first is of the other one
	late.run()
	if e := <-answers; e == nil || e.Code != wire.CodeBackendTimeout {
		t.Errorf("answered %v, want %s", e, wire.CodeBackendTimeout)
	}
	if n := l.inFlight(); n != 0 {
		t.Errorf("%d calls run, want 0", n)
	}
	gateway.Close()
	conn.Close()
	<-ended
	<-ended
}
