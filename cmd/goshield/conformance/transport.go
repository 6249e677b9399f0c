package conformance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// withoutTLS sends HELLO in the clear.
func withoutTLS(d *device) error {
	if d.cfg.TLS == nil {
		return cannotTry("this gateway is reached without TLS")
	}
	conn, err := d.dialPlain()
	if err != nil {
		return err
	}
	defer conn.Close()
	hello, err := d.frame(&wire.Hello{ClientID: d.id})
	if err != nil {
		return err
	}
	_, _ = conn.Write(hello) // the gateway may have closed already
	answer := make([]byte, wire.HeaderSize)
	n, err := conn.Read(answer)
	var late net.Error
	switch {
	case errors.As(err, &late) && late.Timeout():
		return fmt.Errorf("the connection is still open after %v", d.cfg.AnswerTime)
	case n >= 2 && answer[0] <= wire.Version2 && wire.Type(answer[1]) == wire.TypeWelcome:
		return errors.New("it was answered by WELCOME")
	}
	d.saw("no WELCOME")
	return nil
}

// oldTLS offers TLS 1.1 at most.
func oldTLS(d *device) error {
	if d.cfg.TLS == nil {
		return cannotTry("this gateway is reached without TLS")
	}
	raw, err := d.dialPlain()
	if err != nil {
		return err
	}
	defer raw.Close()
	cfg := d.cfg.TLS.Clone()
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if cfg.ServerName == "" {
		if cfg.ServerName, _, err = net.SplitHostPort(d.addr()); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(d.ctx, d.cfg.AnswerTime)
	defer cancel()
	if err := tls.Client(raw, cfg).HandshakeContext(ctx); err == nil {
		return errors.New("TLS 1.1 was taken")
	}
	d.saw("refused")
	return nil
}

// addr is where the device connects.
func (d *device) addr() string {
	if d.way.websocket {
		return d.cfg.WebSocket
	}
	return d.cfg.Addr
}

// dialPlain connects without TLS. The connection has d.cfg.AnswerTime for all it does.
func (d *device) dialPlain() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, d.cfg.AnswerTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", d.addr())
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	_ = conn.SetDeadline(time.Now().Add(d.cfg.AnswerTime))
	return conn, nil
}
