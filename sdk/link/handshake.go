package link

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// Open is the gateway's handshake on a connection that it dialed: it shows its
// secret and waits for the backend's HELLO, until cfg.HandshakeTimeout or the end of
// ctx. It owns nc from now on; with an error nc is closed.
func Open(ctx context.Context, nc net.Conn, cfg Config) (*Conn, error) {
	c := newConn(nc, Gateway, cfg)
	hello := Hello{Node: cfg.Node, Secret: cfg.Secret, MaxFrame: c.cfg.MaxFrame, MaxStreams: c.cfg.MaxStreams}
	return c.handshake(ctx, func() error {
		if _, err := nc.Write(AppendHello(nil, &hello)); err != nil {
			return err
		}
		return c.readHello()
	})
}

// Accept is the backend's handshake on a connection that it accepted. authorize
// decides on the secret that the gateway shows (SecretIn compares it with known
// ones); a gateway that is refused is told so, and nothing else, before nc is closed. Else as
// Open.
func Accept(ctx context.Context, nc net.Conn, cfg Config, authorize func(secret string) bool) (*Conn, error) {
	c := newConn(nc, Backend, cfg)
	hello := Hello{Node: cfg.Node, Services: cfg.Services, MaxFrame: c.cfg.MaxFrame, MaxStreams: c.cfg.MaxStreams}
	return c.handshake(ctx, func() error {
		if err := c.readHello(); err != nil {
			return err
		}
		secret := c.peer.Secret
		c.peer.Secret = ""
		if !authorize(secret) {
			return wire.Errorf(CodeBadSecret, "the secret is not one of this backend's")
		}
		_, err := nc.Write(AppendHello(nil, &hello))
		return err
	})
}

// SecretIn makes a function for Accept that compares, in time which does not
// depend on the values, with the given secrets. An empty one never matches.
func SecretIn(secrets ...string) func(presented string) bool {
	hashes := make([][sha256.Size]byte, 0, len(secrets))
	for _, s := range secrets {
		if s != "" {
			hashes = append(hashes, sha256.Sum256([]byte(s)))
		}
	}
	return func(presented string) bool {
		got := sha256.Sum256([]byte(presented))
		match := 0
		for i := range hashes {
			match |= subtle.ConstantTimeCompare(got[:], hashes[i][:])
		}
		return match == 1
	}
}

// handshake runs exchange under the deadline and settles the limits.
func (c *Conn) handshake(ctx context.Context, exchange func() error) (*Conn, error) {
	_ = c.nc.SetDeadline(time.Now().Add(c.cfg.HandshakeTimeout))
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = c.nc.SetDeadline(time.Now())
	})
	err := exchange()
	if !stop() {
		<-interrupted
		err = context.Cause(ctx)
	}
	if err != nil {
		c.reject(err)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("no HELLO within %v: %w", c.cfg.HandshakeTimeout, err)
		}
		return nil, fmt.Errorf("link handshake: %w", err)
	}
	_ = c.nc.SetDeadline(time.Time{})
	c.limits = Limits{
		MaxFrame:   min(c.cfg.MaxFrame, c.peer.MaxFrame),
		MaxStreams: min(c.cfg.MaxStreams, c.peer.MaxStreams),
	}
	c.in.limit = c.limits.MaxFrame
	return c, nil
}

// reject closes the connection, after telling the peer what it did wrong.
func (c *Conn) reject(err error) {
	defer c.nc.Close()
	var mistake *wire.Error
	if !errors.As(err, &mistake) || errors.Is(err, ErrRefused) {
		return
	}
	_ = c.nc.SetDeadline(time.Now().Add(c.cfg.goodbyeTime))
	if _, err := c.nc.Write(AppendError(nil, 0, mistake.Code, mistake.Message)); err == nil {
		c.awaitClose()
	}
}

// readHello reads the peer's first frame.
func (c *Conn) readHello() error {
	f, err := c.in.next()
	if err != nil {
		return err
	}
	switch {
	case f.Type == TypeError && f.Stream == 0:
		return refused(f)
	case f.Type != TypeHello:
		return wire.Errorf(wire.CodeBadFrame, "the first frame is %s and not HELLO", f.Type)
	}
	c.peer, err = f.Hello()
	return err
}
