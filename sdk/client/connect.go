package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// maxHellos bounds one attempt to connect: with the token, with the one before
// it, enrolling.
const maxHellos = 3

// connect makes one attempt: it resumes with the token there is, and where that
// is refused falls back as the rules say. Its error is a *wire.Error if the gateway
// gave one. old, if not nil, is the connection to be replaced: it goes on until a gateway
// has been reached.
func (c *Client) connect(ctx context.Context, old *conn) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout)
	defer cancel()
	for hello := 1; ; hello++ {
		cn, presented, err := c.open(ctx, old)
		if err == nil {
			return cn, nil
		}
		if code := refusalCode(err); !presented.IsZero() && refusesToken(code) {
			c.log.Info("token refused", "code", string(code))
			c.creds.refused(presented, code)
			if hello < maxHellos {
				continue
			}
		}
		c.log.Info("could not connect", "error", err)
		c.cfg.Hooks.connectFailed(err)
		return nil, err
	}
}

// refusalCode is the code of the gateway's ERROR that err is, or empty.
func refusalCode(err error) wire.Code {
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// open dials and says HELLO: with the token that it also returns, or, if that is zero, to
// enrol.
func (c *Client) open(ctx context.Context, old *conn) (*conn, wire.Token, error) {
	var info Connected
	start := time.Now()
	dialling, dialled := context.WithTimeout(ctx, c.cfg.share(dialTimeout))
	raw, err := c.cfg.DialContext(dialling, "tcp", c.cfg.Addr)
	dialled()
	if err != nil {
		return nil, wire.Token{}, err // says what was dialled
	}
	info.Dial = time.Since(start)
	cn := newConn(c, raw)
	var token wire.Token
	if err = cn.within(ctx, func() error { return cn.handshake(&info) }); err == nil {
		if old != nil {
			// From HELLO on the old connection may be closed at any time by the gateway that
			// has it: nothing new must be on its way there.
			c.setCurrent(nil, errGoaway)
			old.settle()
		}
		err = cn.within(ctx, func() error { token, err = cn.sayHello(&info); return err })
	}
	if err != nil {
		cn.fail(err)
		return nil, token, err
	}
	_ = raw.SetDeadline(time.Time{})
	c.tasks.Go(cn.writeFrames) // ends with the connection
	c.log.Info("connected", "session", cn.welcome.Session, "enrolled", info.Enrolled)
	c.cfg.Hooks.connected(info)
	return cn, token, nil
}

// within takes a step of the opening, which ends with ctx and after its time.
func (cn *conn) within(ctx context.Context, step func() error) error {
	ctx, cancel := context.WithTimeout(ctx, cn.client.cfg.share(stepTimeout))
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		_ = cn.raw.SetDeadline(deadline)
	}
	// A cancelled ctx ends whatever is under way, as a deadline in the past does.
	stop := context.AfterFunc(ctx, func() { _ = cn.raw.SetDeadline(time.Unix(1, 0)) })
	err := step()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		err = withContext(ctx, err)
	}
	return err
}

// withContext adds ctx's end to an error that it caused.
func withContext(ctx context.Context, err error) error {
	cause := ctx.Err()
	if cause == nil && isTimeout(err) {
		cause = context.DeadlineExceeded // the connection's deadline is ctx's, and was first by a hair
	}
	if cause == nil || errors.Is(err, cause) || refusalCode(err) != "" {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// handshake completes TLS, where it is wanted.
func (cn *conn) handshake(info *Connected) error {
	if cn.client.cfg.TLS == nil {
		return nil
	}
	start := time.Now()
	secured := tls.Client(cn.raw, cn.client.cfg.TLS)
	if err := secured.Handshake(); err != nil { // bounded by the deadline that open set
		return fmt.Errorf("TLS: %w", err)
	}
	info.Handshake = time.Since(start)
	info.TLSResumed = secured.ConnectionState().DidResume
	cn.setTransport(secured)
	return nil
}

// sayHello says HELLO, with the token it returns, and what else is asked, until WELCOME.
func (cn *conn) sayHello(info *Connected) (wire.Token, error) {
	start := time.Now()
	cfg := &cn.client.cfg
	token, gen := cn.client.creds.present()
	info.Enrolled = token.IsZero()
	err := cn.writeNow(&wire.Hello{ClientID: cfg.ClientID, Token: token, Agent: cfg.Agent})
	if err == nil {
		err = cn.awaitWelcome()
	}
	if err == nil {
		info.Welcome = time.Since(start)
		err = cn.keepToken(token, gen)
	}
	if err != nil && refusalCode(err) == "" {
		cn.client.strayAt = time.Now() // the gateway may have let us in
	}
	return token, err
}

// awaitWelcome reads until WELCOME, answering a challenge.
func (cn *conn) awaitWelcome() error {
	for challenged := false; ; challenged = true {
		f, err := cn.reader.Next()
		switch {
		case err != nil:
			return readError(err)
		case f.Type == wire.TypeWelcome:
			return cn.decode(f, &cn.welcome)
		case f.Type == wire.TypeError:
			e := new(wire.Error)
			if err := cn.decode(f, e); err != nil {
				return err
			}
			cn.client.cfg.Hooks.errored(e)
			return e
		case f.Type == wire.TypeChallenge && !challenged:
			if err := cn.prove(f); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: %s instead of WELCOME", ErrProtocol, f.Type)
		}
	}
}

func (cn *conn) prove(f wire.Frame) error {
	var challenge wire.Challenge
	if err := cn.decode(f, &challenge); err != nil {
		return err
	}
	cfg := &cn.client.cfg
	if cfg.DeviceKey == nil {
		return errors.New("the gateway wants a proof, and this device has no key")
	}
	binding, err := cn.binding()
	if err != nil {
		return err
	}
	proof := wire.ProofOf(*cfg.DeviceKey, challenge.Nonce, binding, cfg.ClientID)
	return cn.writeNow(&wire.Proof{Proof: proof})
}

// binding ties a proof to this TLS connection (RFC 9266).
func (cn *conn) binding() (b [32]byte, err error) {
	secured, ok := cn.transport.(*tls.Conn)
	if !ok || cn.client.cfg.NoChannelBinding {
		return b, nil
	}
	state := secured.ConnectionState()
	exported, err := state.ExportKeyingMaterial(wire.ExporterLabel, nil, len(b))
	if err != nil {
		return b, fmt.Errorf("bind the proof to TLS: %w", err)
	}
	return [32]byte(exported), nil
}

// keepToken stores what WELCOME brought: the token presented, its successor, or
// the first.
func (cn *conn) keepToken(presented wire.Token, gen uint64) error {
	if cn.welcome.MaxFrame == 0 {
		cn.welcome.MaxFrame = wire.DefaultMaxPayload
	}
	creds := cn.client.creds
	if presented.IsZero() {
		return creds.enrolled(cn.welcome.Token, cn.welcome.ExpiresAt)
	}
	if err := creds.answered(gen); err != nil {
		return err
	}
	if cn.welcome.Token == presented {
		return nil
	}
	_, err := creds.rotate(cn.welcome.Token, cn.welcome.ExpiresAt)
	return err
}

// decode reads a frame of the gateway's.
func (cn *conn) decode(f wire.Frame, m wire.Message) error {
	if err := wire.Unmarshal(f.Version, f.Payload, m); err != nil {
		return fmt.Errorf("%w: %s", ErrProtocol, err.Error()) // not wrapped: no ERROR frame said so
	}
	return nil
}

// readError explains an error of wire.Reader.
func readError(err error) error {
	var broken *wire.Error
	if errors.As(err, &broken) {
		return fmt.Errorf("%w: %s", ErrProtocol, err.Error())
	}
	return fmt.Errorf("connection closed by the gateway or the network: %w", err)
}

// writeNow writes one frame before there is a writer.
func (cn *conn) writeNow(m wire.Message) error {
	frame, err := wire.Append(nil, cn.client.cfg.Version, m)
	if err != nil {
		return err
	}
	if _, err := cn.transport.Write(frame); err != nil {
		return fmt.Errorf("send %s: %w", m.Type(), err)
	}
	return nil
}
