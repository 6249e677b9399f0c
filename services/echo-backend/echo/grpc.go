package echo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/backend/backendpb"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// grpcServer answers sdk/backend/backend.proto, as a gateway's route with
// "protocol": "grpc" asks.
type grpcServer struct {
	backendpb.UnimplementedBackendServer

	srv    *Server // static after construction
	server *grpc.Server
	health *grpchealth.Server
	served chan struct{} // closed when serve has ended

	mu      sync.Mutex
	streams map[*pushStream]struct{} // one for each gateway
}

func (s *Server) serveGRPC(ln net.Listener) *grpcServer {
	g := &grpcServer{
		srv:     s,
		health:  grpchealth.NewServer(),
		served:  make(chan struct{}),
		streams: make(map[*pushStream]struct{}),
	}
	g.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(wire.MaxPayload+1024),
		grpc.UnaryInterceptor(g.authorizeCall),
		grpc.StreamInterceptor(g.authorizeStream),
		grpc.WaitForHandlers(true),
	)
	backendpb.RegisterBackendServer(g.server, g)
	healthpb.RegisterHealthServer(g.server, g.health)
	go g.serve(ln) // ends with stop
	return g
}

func (g *grpcServer) serve(ln net.Listener) {
	defer close(g.served)
	if err := g.server.Serve(ln); err != nil {
		g.srv.health.SetNotReady("the gRPC listener failed")
		g.srv.log.Error("gRPC is no longer served", zap.Error(err))
	}
}

// stop answers what is in flight, until ctx ends.
func (g *grpcServer) stop(ctx context.Context) error {
	g.health.Shutdown()
	g.mu.Lock()
	for p := range g.streams {
		p.end() // a stream of pushes would last for ever
	}
	g.mu.Unlock()
	done := make(chan struct{})
	go func() { g.server.GracefulStop(); close(done) }() // ends at the latest with Stop
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		g.server.Stop()
		<-done
	}
	<-g.served
	return err
}

func (g *grpcServer) authorize(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if shown, ok := strings.CutPrefix(v, "Bearer "); ok && g.srv.secret.Matches(shown) {
			return nil
		}
	}
	return status.Error(codes.Unauthenticated, "show the gateways' secret as a bearer token")
}

func (g *grpcServer) authorizeCall(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := g.authorize(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (g *grpcServer) authorizeStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := g.authorize(stream.Context()); err != nil {
		return err
	}
	return next(srv, stream)
}

// Handle answers one request.
func (g *grpcServer) Handle(ctx context.Context, r *backendpb.HandleRequest) (*backendpb.HandleResponse, error) {
	var id wire.ClientID
	if len(r.ClientId) != len(id) {
		return nil, status.Errorf(codes.InvalidArgument, "client_id has %d bytes, want %d", len(r.ClientId), len(id))
	}
	copy(id[:], r.ClientId)
	resp, err := g.srv.handle(ctx, backend.Request{
		ClientID: id,
		Service:  r.Service,
		Body:     r.Body,
		JSON:     r.Encoding == backendpb.Encoding_ENCODING_JSON,
	}, g.push)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	case err != nil:
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &backendpb.HandleResponse{Body: resp.Body}, nil
}

// pushStream is one gateway's stream of pushes.
type pushStream struct {
	stream grpc.BidiStreamingServer[backendpb.PushResult, backendpb.PushRequest]
	end    context.CancelFunc

	mu      sync.Mutex // also: one Send at a time
	lastID  uint64
	waiting map[uint64]chan backendpb.Outcome // capacity 1; closed when the stream has ended
	ended   bool
}

// Push is open as long as a gateway wants to hear of pushes.
func (g *grpcServer) Push(stream grpc.BidiStreamingServer[backendpb.PushResult, backendpb.PushRequest]) error {
	ctx, end := context.WithCancel(stream.Context())
	defer end()
	p := &pushStream{stream: stream, end: end, waiting: make(map[uint64]chan backendpb.Outcome)}
	g.mu.Lock()
	g.streams[p] = struct{}{}
	g.mu.Unlock()
	// Recv ends when this function has returned.
	go p.receive(end)
	<-ctx.Done()
	g.mu.Lock()
	delete(g.streams, p)
	g.mu.Unlock()
	p.close()
	return nil
}

// receive passes results on until the stream ends.
func (p *pushStream) receive(end context.CancelFunc) {
	defer end()
	for {
		r, err := p.stream.Recv()
		if err != nil {
			return
		}
		p.mu.Lock()
		if result := p.waiting[r.Id]; result != nil {
			delete(p.waiting, r.Id)
			result <- r.Outcome
		}
		p.mu.Unlock()
	}
}

func (p *pushStream) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for id, result := range p.waiting {
		delete(p.waiting, id)
		close(result)
	}
}

// errStreamEnded: it is not known what became of the message.
var errStreamEnded = errors.New("the gateway's stream ended")

// push sends a message by one gateway and waits for what becomes of it.
func (p *pushStream) push(ctx context.Context, id wire.ClientID, service string, body []byte) (backendpb.Outcome, error) {
	result := make(chan backendpb.Outcome, 1)
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return backendpb.Outcome_OUTCOME_NOT_CONNECTED, nil
	}
	p.lastID++
	push := p.lastID
	p.waiting[push] = result
	err := p.stream.Send(&backendpb.PushRequest{Id: push, ClientId: id[:], Service: service, Body: body})
	p.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	defer func() {
		p.mu.Lock()
		delete(p.waiting, push)
		p.mu.Unlock()
	}()
	select {
	case outcome, ok := <-result:
		if !ok {
			return 0, errStreamEnded
		}
		return outcome, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// push asks each gateway in turn until one has the device.
func (g *grpcServer) push(ctx context.Context, id wire.ClientID, service string, body []byte) (link.PushResult, error) {
	g.mu.Lock()
	streams := make([]*pushStream, 0, len(g.streams))
	for p := range g.streams {
		streams = append(streams, p)
	}
	g.mu.Unlock()
	for _, p := range streams {
		outcome, err := p.push(ctx, id, service, body)
		switch {
		case err != nil:
			return link.PushTimedOut, err
		case outcome == backendpb.Outcome_OUTCOME_ACKNOWLEDGED:
			return link.PushAcknowledged, nil
		case outcome == backendpb.Outcome_OUTCOME_QUEUE_FULL:
			return link.PushQueueFull, nil
		case outcome == backendpb.Outcome_OUTCOME_TIMED_OUT:
			return link.PushTimedOut, nil
		}
	}
	return link.PushNotConnected, nil
}
