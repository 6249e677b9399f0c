// Package client is the device's side of GoShield: one connection that is kept
// alive, resumed and replaced for as long as the device lives.
//
//	id, err := wire.ClientIDFromMAC("00:1a:2b:3c:4d:5e")
//	store, err := client.FileStore("/var/lib/meter/goshield")
//	c, err := client.Dial(ctx, client.Config{
//		Addr: "gateway.example.org:8443", TLS: &tls.Config{}, ClientID: id, TokenStore: store,
//	})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	answer, err := c.Request(ctx, "echo", []byte(`{"hello":"world"}`))
//
// It does what docs/PROTOCOL.md asks of a device: enrols or resumes, answers
// a challenge, sends heartbeats, takes new tokens by the rules that never lock it out,
// moves to another gateway when told to, and reconnects with back-off and full jitter.
//
// A connection on which a request waits and nothing comes for 2 s is asked by a heartbeat whether it
// lives, and replaced if nothing comes for 4 s more; so a device is back soon after the balancer or the gateway
// that it had is gone without a word.
//
// It never sends a request twice if the first could have been carried out: one
// whose connection broke after it was sent ends with ErrConnectionLost, and whether to
// repeat it is the caller's decision. It queues nothing while disconnected beyond the
// calls of Request that are waiting, each until its deadline.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Errors of this package. What a gateway answered comes as a *wire.Error.
var (
	// ErrClosed: Close was called.
	ErrClosed = errors.New("client is closed")
	// ErrConnectionLost: the connection broke while a request was under way. It
	// may have been carried out, or not.
	ErrConnectionLost = errors.New("connection lost before the answer came")
	// ErrProtocol: the gateway sent what the protocol does not allow.
	ErrProtocol = errors.New("gateway broke the protocol")
)

// Defaults of Config.
const (
	DefaultRequestTimeout = 10 * time.Second
	DefaultConnectTimeout = 10 * time.Second
	DefaultBackoffBase    = 500 * time.Millisecond
	DefaultBackoffCap     = 30 * time.Second
	DefaultMaxInFlight    = 32
)

// What the steps of an attempt to connect may take, unless ConnectTimeout is longer than its default and they share in
// that.
const (
	// dialTimeout is for the TCP connection. A SYN that is lost is sent again after 1, 3, 7, 15 s on most systems: a
	// device that dials while a virtual address moves is there sooner by a new attempt after the third.
	dialTimeout = 4 * time.Second
	// stepTimeout is for TLS, for which the gateway gives no longer either, and for HELLO until WELCOME. A device that
	// reached a balancer just before that lost the virtual address waits no longer than this.
	stepTimeout = 5 * time.Second
)

// share is what a step of an attempt may take.
func (cfg *Config) share(step time.Duration) time.Duration {
	return time.Duration(float64(step) * max(1, cfg.ConnectTimeout.Seconds()/DefaultConnectTimeout.Seconds()))
}

// Config says who the device is and where it connects. Addr and ClientID are
// required.
type Config struct {
	Addr     string // host:port
	ClientID wire.ClientID

	// TLS is how the gateway is checked; its ServerName defaults to Addr's host.
	// nil: plain TCP, which only demonstrations accept.
	TLS *tls.Config
	// DialContext replaces net.Dialer's. The connection it returns is closed by
	// the client.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)

	// TokenStore keeps the token over restarts; nil: MemoryStore.
	TokenStore TokenStore
	// DeviceKey answers a gateway's challenge (see wire.DeviceKey); nil: the
	// device has none and cannot enrol where one is asked for.
	DeviceKey *[32]byte
	// NoChannelBinding is for listeners that say channel_binding: none.
	NoChannelBinding bool
	Agent            string // the device's software, for the operators of the gateway
	// Version is how frames are encoded: wire.Version1, which 0 means too, where
	// bodies are JSON, or wire.Version2, where they are any bytes.
	Version byte

	// OnPush is called for each message that a service pushes, one at a time and in
	// order, from a goroutine of its own; the push is acknowledged when it
	// returns. It may call Request. At most 16 messages wait for it, more are not acknowledged.
	// nil: pushes are not acknowledged.
	OnPush func(Push)
	Hooks  Hooks
	Logger *slog.Logger // nil: no logs

	// RequestTimeout bounds a Request whose context has no deadline.
	RequestTimeout time.Duration
	// ConnectTimeout bounds one attempt: dialling, for which there are 4 s of 10, TLS and WELCOME, 5 s each. A longer one
	// gives more to each of them.
	ConnectTimeout time.Duration
	// A reconnect waits a random time between 0 and BackoffBase, doubled with each
	// attempt up to BackoffCap (full jitter), but to no more than the outage has lasted.
	BackoffBase, BackoffCap time.Duration
	// MaxInFlight is how many requests may be unanswered; more wait. It should not
	// be above the gateway's max_in_flight, which stops reading there: while that many are unanswered,
	// a connection's silence tells the client nothing.
	MaxInFlight int
	// KeepDialing makes Dial go on trying, as after a lost connection, until its
	// context ends. Otherwise Dial returns the first failure.
	KeepDialing bool
	// ReconnectTakenOver goes on even if another connection of this client_id took over.
	// Without it that ends the client: two devices of one name would fight for ever.
	ReconnectTakenOver bool
}

// Push is a message that a service sent.
type Push struct {
	Service string
	Body    []byte // JSON in version 1; the handler may keep it
}

// Client is one device. Its methods are safe for concurrent use. It runs two
// goroutines, and a third if there is an OnPush.
type Client struct {
	// Static after construction.
	cfg    Config
	creds  *credentials
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	slots  chan struct{} // one taken per request that is under way
	pushes chan delivery
	done   chan struct{} // closed when run has ended
	tasks  sync.WaitGroup

	// Owned by run (by Dial before it).
	backoff backoff
	strayAt time.Time // when an attempt of ours last ended after HELLO without an answer

	mu      sync.Mutex
	current *conn         // takes new requests; nil while there is none
	changed chan struct{} // closed and replaced when what mu guards changes
	lastErr error         // why there is no connection
	err     error         // why there never will be one again
}

// Dial connects the device and returns when the gateway has welcomed it. The
// error of a gateway is a *wire.Error. ctx is for Dial alone: the client lives until Close.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	creds, err := loadCredentials(cfg.TokenStore, cfg.ClientID)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg:     cfg,
		creds:   creds,
		log:     cfg.Logger,
		slots:   make(chan struct{}, cfg.MaxInFlight),
		done:    make(chan struct{}),
		backoff: backoff{base: cfg.BackoffBase, limit: cfg.BackoffCap},
		changed: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	cn, err := c.connect(ctx, nil)
	if err != nil && cfg.KeepDialing {
		cn, err = c.connectAgain(ctx, err, nil)
	}
	if err != nil {
		c.cancel()
		return nil, err
	}
	if cfg.OnPush != nil {
		c.pushes = make(chan delivery, maxPushes)
		c.tasks.Go(c.deliverPushes)
	}
	c.setCurrent(cn, nil)
	go c.run(cn) // ends after Close, or when taken over; Close waits for it by done
	return c, nil
}

// complete checks the configuration and fills in the defaults.
func (cfg *Config) complete() error {
	host, _, err := net.SplitHostPort(cfg.Addr)
	if err != nil {
		return fmt.Errorf("gateway address: %w", err)
	}
	if cfg.ClientID == (wire.ClientID{}) {
		return errors.New("no client_id")
	}
	switch cfg.Version {
	case 0:
		cfg.Version = wire.Version1
	case wire.Version1, wire.Version2:
	default:
		return fmt.Errorf("protocol version %d is not supported", cfg.Version)
	}
	if cfg.TLS != nil {
		cfg.TLS = cfg.TLS.Clone()
		if cfg.TLS.ServerName == "" {
			cfg.TLS.ServerName = host
		}
		if cfg.TLS.ClientSessionCache == nil {
			cfg.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
	}
	if cfg.DialContext == nil {
		cfg.DialContext = new(net.Dialer).DialContext
	}
	if cfg.TokenStore == nil {
		cfg.TokenStore = MemoryStore()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	orDefault(&cfg.RequestTimeout, DefaultRequestTimeout)
	orDefault(&cfg.ConnectTimeout, DefaultConnectTimeout)
	orDefault(&cfg.BackoffBase, DefaultBackoffBase)
	orDefault(&cfg.BackoffCap, DefaultBackoffCap)
	orDefault(&cfg.MaxInFlight, DefaultMaxInFlight)
	return nil
}

func orDefault[T int | time.Duration](v *T, otherwise T) {
	if *v <= 0 {
		*v = otherwise
	}
}

// Request sends body, a JSON value in version 1, to a service and returns its answer. While
// the device is not connected it waits. It always ends: with ctx, or after
// Config.RequestTimeout if ctx has no deadline. The gateway's refusal is a *wire.Error; if
// the connection broke meanwhile the error is ErrConnectionLost.
func (c *Client) Request(ctx context.Context, service string, body []byte) ([]byte, error) {
	if service == "" || len(service) > wire.MaxServiceName {
		return nil, fmt.Errorf("service name of %d bytes, must have 1 to %d", len(service), wire.MaxServiceName)
	}
	if c.cfg.Version == wire.Version1 && !wire.ValidJSON(body) {
		return nil, errors.New("request body is not JSON")
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.RequestTimeout)
		defer cancel()
	}
	for {
		answer, err := c.try(ctx, service, body)
		if !errors.Is(err, errNotTaken) {
			return answer, err
		}
	}
}

// errNotTaken: the request was certainly not carried out and can be sent again.
var errNotTaken = errors.New("not taken")

// try sends a request over one connection.
func (c *Client) try(ctx context.Context, service string, body []byte) ([]byte, error) {
	select {
	case c.slots <- struct{}{}: // given back by whoever takes the call off its connection
	case <-ctx.Done():
		return nil, fmt.Errorf("request to %s: %d others are unanswered: %w", service, c.cfg.MaxInFlight, ctx.Err())
	}
	cn, err := c.connection(ctx)
	if err != nil {
		<-c.slots
		return nil, fmt.Errorf("request to %s: %w", service, err)
	}
	call, err := cn.send(service, body)
	if err != nil {
		<-c.slots
		return nil, err
	}
	select {
	case r := <-call.reply:
		return r.body, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("request to %s: no answer: %w", service, ctx.Err())
	}
}

// connection returns the connection for new requests, when there is one.
func (c *Client) connection(ctx context.Context) (*conn, error) {
	for {
		c.mu.Lock()
		cn, changed, lastErr, err := c.current, c.changed, c.lastErr, c.err
		c.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if cn != nil && cn.serves() {
			return cn, nil
		}
		select { // one that serves no more is replaced
		case <-changed:
		case <-ctx.Done():
			if lastErr != nil {
				return nil, fmt.Errorf("not connected (%s): %w", lastErr.Error(), ctx.Err())
			}
			return nil, fmt.Errorf("not connected: %w", ctx.Err())
		}
	}
}

// setCurrent makes cn, or none and why, what new requests use. Once the client
// has ended it does nothing.
func (c *Client) setCurrent(cn *conn, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.current, c.lastErr = cn, why
		c.notify()
	}
}

// notify is called with mu held.
func (c *Client) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// end makes err the client's last word.
func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.current = nil
		c.notify()
	}
}

// Done is closed when the client has ended: after Close, or because another connection took
// over. Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the client has ended: ErrClosed or a *wire.Error. nil while it
// lives, connected or not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Session names the connection in the gateway's logs; "" while there is none.
func (c *Client) Session() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return ""
	}
	return c.current.welcome.Session
}

// Close says good-bye to the gateway if that takes no more than a second, ends all
// requests with ErrClosed and returns when every goroutine of the client has ended
// (an OnPush that is running is waited for, so it must not call Close). The store keeps
// the token: the device can resume later.
func (c *Client) Close() error {
	c.mu.Lock()
	cn := c.current
	c.mu.Unlock()
	c.end(ErrClosed)
	if cn != nil {
		cn.sayBye()
	}
	c.cancel()
	<-c.done
	c.tasks.Wait()
	return nil
}
