package bridge

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/backend/backendpb"
	"github.com/goshield/goshield/sdk/link"
	"github.com/goshield/goshield/sdk/wire"
)

// maxPushes is how many pushes of one stream have no result yet; more are not
// read.
const maxPushes = 256

// grpcCaller calls goshield.backend.v1.Backend; see sdk/backend/backend.proto.
type grpcCaller struct {
	cfg    Config
	conn   *grpc.ClientConn
	client backendpb.BackendClient
	health healthpb.HealthClient
	calls  atomic.Uint64 // numbers request ids
}

func newGRPCCaller(cfg Config) (*grpcCaller, error) {
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		creds = renewed{credentials.NewTLS(cfg.TLS()), cfg.TLS}
	}
	conn, err := grpc.NewClient("passthrough:///"+cfg.Address,
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: dialTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer+1024)),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, err
	}
	return &grpcCaller{
		cfg: cfg, conn: conn,
		client: backendpb.NewBackendClient(conn),
		health: healthpb.NewHealthClient(conn),
	}, nil
}

// renewed are credentials whose configuration is asked for anew with each connection.
type renewed struct {
	credentials.TransportCredentials // who is called, which does not change
	config                           func() *tls.Config
}

// ClientHandshake implements credentials.TransportCredentials.
func (r renewed) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(r.config()).ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (r renewed) Clone() credentials.TransportCredentials {
	return renewed{r.TransportCredentials.Clone(), r.config}
}

func (c *grpcCaller) close() { _ = c.conn.Close() }

// authorized is ctx with the secret that calls show.
func (c *grpcCaller) authorized(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.cfg.Secret())
}

func (c *grpcCaller) handle(ctx context.Context, req backend.Request) (backend.Response, error) {
	encoding := backendpb.Encoding_ENCODING_BYTES
	if req.JSON {
		encoding = backendpb.Encoding_ENCODING_JSON
	}
	resp, err := c.client.Handle(c.authorized(ctx), &backendpb.HandleRequest{
		ClientId:  req.ClientID[:],
		Service:   req.Service,
		Encoding:  encoding,
		Body:      req.Body,
		RequestId: c.cfg.Node + "/" + strconv.FormatUint(c.calls.Add(1), 36),
	})
	switch {
	case err == nil && len(resp.Body) > maxAnswer:
		return backend.Response{}, tooLong()
	case err == nil:
		return backend.Response{Body: resp.Body}, nil
	case ctx.Err() != nil:
		return backend.Response{}, ctx.Err() // backend_timeout, or nobody waits
	}
	return backend.Response{}, grpcFailure(status.Convert(err))
}

// grpcFailure is a status in the protocol's codes.
func grpcFailure(s *status.Status) error {
	switch s.Code() {
	case codes.Unavailable: // its message has the address
		return wire.Errorf(wire.CodeBackendUnavailable, "the backend cannot be reached, or is not available")
	case codes.DeadlineExceeded:
		return wire.Errorf(wire.CodeBackendTimeout, "the backend gave up")
	case codes.NotFound:
		return wire.Errorf(wire.CodeNoSuchService, "%s", s.Message())
	case codes.Unknown, codes.Internal, codes.DataLoss: // what would be status 500
		return wire.Errorf(link.CodeBackendFailed, "%s: %s", s.Code(), s.Message())
	}
	return wire.Errorf(wire.CodeBackendError, "%s: %s", s.Code(), s.Message())
}

// probe asks the standard health service (grpc.health.v1).
func (c *grpcCaller) probe(ctx context.Context) error {
	resp, err := c.health.Check(c.authorized(ctx), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil // it can be reached
	case err != nil:
		return err
	case resp.Status != healthpb.HealthCheckResponse_SERVING:
		return status.Errorf(codes.Unavailable, "health is %s", resp.Status)
	}
	return nil
}

// run keeps the stream open by which the service pushes to devices.
func (c *grpcCaller) run(ctx context.Context, srv *backend.Server) {
	const least, most = 100 * time.Millisecond, 5 * time.Second
	pause := least
	for ctx.Err() == nil {
		began := time.Now()
		err := c.relayPushes(ctx, srv)
		if status.Code(err) == codes.Unimplemented {
			return // it pushes nothing
		}
		if time.Since(began) > most {
			pause = least
		}
		if ctx.Err() == nil {
			c.cfg.Log.Info("stream of pushes ended", zap.Error(err))
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
		}
		pause = min(2*pause, most)
	}
}

// relayPushes passes on what one stream brings until it breaks or ctx ends.
func (c *grpcCaller) relayPushes(ctx context.Context, srv *backend.Server) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.client.Push(c.authorized(ctx))
	if err != nil {
		cancel()
		return err
	}
	p := pushes{srv: srv, stream: stream, free: make(chan struct{}, maxPushes)}
	defer p.work.Wait() // after cancel
	defer cancel()
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		p.free <- struct{}{} // given back within the time that a push may take
		p.work.Go(func() { p.relay(ctx, req) })
	}
}

// pushes is one stream of pushes.
type pushes struct {
	srv    *backend.Server
	stream grpc.BidiStreamingClient[backendpb.PushResult, backendpb.PushRequest]
	free   chan struct{} // one taken by each push under way
	work   sync.WaitGroup

	sending sync.Mutex
}

func (p *pushes) relay(ctx context.Context, req *backendpb.PushRequest) {
	outcome := backendpb.Outcome_OUTCOME_NOT_CONNECTED
	if id := (wire.ClientID{}); copy(id[:], req.ClientId) == len(id) && len(req.ClientId) == len(id) {
		result, err := p.srv.Push(ctx, id, req.Service, req.Body)
		outcome = outcomeOf(result)
		if err != nil && result == link.PushNotConnected {
			p.srv.Log.Debug("push refused", "error", err)
		}
	}
	<-p.free
	p.sending.Lock()
	defer p.sending.Unlock()
	_ = p.stream.Send(&backendpb.PushResult{Id: req.Id, Outcome: outcome}) // or it has ended, which Recv says
}

func outcomeOf(r link.PushResult) backendpb.Outcome {
	switch r {
	case link.PushAcknowledged:
		return backendpb.Outcome_OUTCOME_ACKNOWLEDGED
	case link.PushQueueFull:
		return backendpb.Outcome_OUTCOME_QUEUE_FULL
	case link.PushTimedOut:
		return backendpb.Outcome_OUTCOME_TIMED_OUT
	}
	return backendpb.Outcome_OUTCOME_NOT_CONNECTED
}
