package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// slack is how much later than told a deadline may be noticed.
const slack = 10 * time.Second

// device is what a rule plays. It is used by one goroutine.
type device struct {
	ctx context.Context
	cfg *Config
	way way
	mac uint64
	id  wire.ClientID

	dialled time.Time // before it was
	sentAt  time.Time // before the last frame was sent; zero: none was
	conn    net.Conn
	in      *wire.Reader
	hears   byte // the version that the gateway must answer in: 1 until it has read a frame

	token     wire.Token
	welcome   wire.Welcome
	challenge wire.Frame // what a proof is asked for by; its payload is a copy
	lastID    uint32
	mayGo     bool      // the rule expects GOAWAY
	leaveAt   time.Time // when GOAWAY wants it gone

	remarks []string // what the gateway did
	others  []*device
}

func newDevice(ctx context.Context, cfg *Config, w way, mac uint64) *device {
	d := &device{ctx: ctx, cfg: cfg, way: w, mac: mac}
	id, err := wire.ClientIDFromMAC(fmt.Sprintf("%012x", mac))
	if err != nil {
		panic(err) // Config.complete has seen to it
	}
	d.id = id
	return d
}

// another is a second connection of this device, or with stranger another device; it is closed with this one.
func (d *device) another(stranger bool) *device {
	mac := d.mac
	if stranger {
		mac++
	}
	o := newDevice(d.ctx, d.cfg, d.way, mac)
	d.others = append(d.others, o)
	return o
}

func (d *device) close() {
	if d.conn != nil {
		_ = d.conn.Close()
	}
	for _, o := range d.others {
		o.close()
	}
}

// pause waits, for a time that the gateway may have named: not longer than the patience, and not beyond the run's end.
func (d *device) pause(wait time.Duration) error {
	if wait > d.cfg.Patience {
		return cannotTry("the gateway asks for a wait of %v", wait)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-d.ctx.Done():
		return d.ctx.Err()
	}
}

// saw notes what the gateway did.
func (d *device) saw(format string, args ...any) {
	d.remarks = append(d.remarks, fmt.Sprintf(format, args...))
}

// seen is the last of it.
func (d *device) seen() string {
	return strings.Join(d.remarks[max(0, len(d.remarks)-2):], ", then ")
}

// sendRaw sends bytes as they are; over WebSocket they are one message.
func (d *device) sendRaw(b []byte) error {
	_ = d.conn.SetWriteDeadline(time.Now().Add(d.cfg.AnswerTime))
	if _, err := d.conn.Write(b); err != nil {
		return fmt.Errorf("send %d bytes: %w", len(b), err)
	}
	return nil
}

// frame is m as the device would send it.
func (d *device) frame(m wire.Message) ([]byte, error) { return wire.Append(nil, d.way.version, m) }

// send sends a frame.
func (d *device) send(m wire.Message) error {
	frame, err := d.frame(m)
	if err != nil {
		return err
	}
	d.hears, d.sentAt = d.way.version, time.Now()
	return d.sendRaw(frame)
}

// sendPayload sends a frame with a payload of the rule's own making.
func (d *device) sendPayload(t wire.Type, payload []byte) error {
	d.hears = d.way.version
	return d.sendRaw(append(wire.Header{Version: d.way.version, Type: t, Length: uint16(len(payload))}.Append(nil), payload...))
}

// read returns the next frame, within limit.
func (d *device) read(limit time.Duration) (wire.Frame, error) {
	_ = d.conn.SetReadDeadline(time.Now().Add(limit))
	f, err := d.in.Next()
	switch {
	case err == nil:
	case d.ctx.Err() != nil:
		return f, d.ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return f, fmt.Errorf("nothing came within %v", limit.Round(time.Second))
	case errors.As(err, new(*wire.Error)):
		return f, fmt.Errorf("the gateway sent a frame that no one can read: %w", err)
	default:
		return f, &hungUp{err}
	}
	if again := d.interrupted(f); again != nil {
		return f, again
	}
	if f.Version != d.hears {
		return f, fmt.Errorf("the gateway sent a %s frame of version %d, want %d", f.Type, f.Version, d.hears)
	}
	return f, nil
}

// playAgain is what a gateway may do at any time and that has nothing to do with the rule, which is played again
// after a while.
type playAgain struct {
	what string
	wait time.Duration
}

func (e *playAgain) Error() string { return "meanwhile the gateway " + e.what }

// interrupted reports whether a frame is of that kind, nil if not.
func (d *device) interrupted(f wire.Frame) error {
	switch {
	case f.Type == wire.TypeGoaway && !d.mayGo:
		return &playAgain{what: "sent the device away (GOAWAY)"}
	case f.Type == wire.TypeError:
		var e wire.Error
		if wire.Unmarshal(f.Version, f.Payload, &e) == nil && (e.Code == wire.CodeAuthUnavailable || e.Code == wire.CodeOverloaded) {
			return &playAgain{what: "was " + string(e.Code), wait: min(max(e.RetryAfter, 100*time.Millisecond), slack)}
		}
	}
	return nil
}

// hungUp is the end of the connection.
type hungUp struct{ err error }

func (e *hungUp) Error() string {
	if errors.Is(e.err, io.EOF) {
		return "the gateway closed the connection"
	}
	return "the connection broke: " + e.err.Error()
}

// next reads the next frame into m, which must be of its type. An ERROR that is not wanted is the error.
func (d *device) next(m wire.Message) error { return d.nextWithin(d.cfg.AnswerTime, m) }

func (d *device) nextWithin(limit time.Duration, m wire.Message) error {
	f, err := d.read(limit)
	if err != nil {
		return fmt.Errorf("waiting for %s: %w", m.Type(), err)
	}
	return d.take(f, m)
}

// take decodes a frame into m, which must be of its type, as next does.
func (d *device) take(f wire.Frame, m wire.Message) error {
	if f.Type != m.Type() {
		e := &wire.Error{}
		if f.Type == wire.TypeError && wire.Unmarshal(f.Version, f.Payload, e) == nil {
			return fmt.Errorf("got ERROR in place of %s: %w", m.Type(), e)
		}
		return fmt.Errorf("got %s in place of %s", f.Type, m.Type())
	}
	// The payload is the Reader's, and bodies stay in it.
	if err := wire.Unmarshal(f.Version, bytes.Clone(f.Payload), m); err != nil {
		return fmt.Errorf("got a %s that cannot be read: %w", m.Type(), err)
	}
	d.saw("%s", describe(m))
	return nil
}

// describe says what a frame is, without tokens.
func describe(m wire.Message) string {
	switch m := m.(type) {
	case *wire.Error:
		text := "ERROR " + m.Error()
		if m.HasID {
			text += fmt.Sprintf(" (id %d)", m.ID)
		}
		return text
	case *wire.Response:
		return fmt.Sprintf("RESPONSE to %d", m.ID)
	case *wire.HeartbeatAck:
		if !m.Token.IsZero() {
			return "HEARTBEAT_ACK with a new token"
		}
	case *wire.Goaway:
		return fmt.Sprintf("GOAWAY %s after %v", m.Reason, m.After)
	}
	return m.Type().String()
}

// hello introduces the device on a connection that there is, with a token or without, and proves its key if it is
// asked to. The gateway's refusal is a *wire.Error.
func (d *device) hello(token wire.Token) error {
	if err := d.send(&wire.Hello{ClientID: d.id, Token: token, Agent: "goshield conformance"}); err != nil {
		return err
	}
	f, err := d.read(d.cfg.AnswerTime)
	if err == nil && f.Type == wire.TypeChallenge {
		if err = d.prove(f); err == nil {
			f, err = d.read(d.cfg.AnswerTime)
		}
	}
	if err != nil {
		return fmt.Errorf("waiting for WELCOME: %w", err)
	}
	switch f.Type {
	case wire.TypeWelcome:
		if err := wire.Unmarshal(f.Version, f.Payload, &d.welcome); err != nil {
			return fmt.Errorf("got a WELCOME that cannot be read: %w", err)
		}
		d.token = d.welcome.Token
		d.saw("WELCOME")
		return nil
	case wire.TypeError:
		e := &wire.Error{}
		if err := wire.Unmarshal(f.Version, f.Payload, e); err != nil {
			return fmt.Errorf("got an ERROR that cannot be read: %w", err)
		}
		d.saw("%s", describe(e))
		return e
	}
	return fmt.Errorf("got %s in place of WELCOME", f.Type)
}

// prove answers a CHALLENGE.
func (d *device) prove(f wire.Frame) error {
	var c wire.Challenge
	if err := wire.Unmarshal(f.Version, f.Payload, &c); err != nil {
		return err
	}
	if d.cfg.DeviceKey == nil || d.cfg.DeviceKey(d.id) == nil {
		return cannotTry("the gateway asks for a proof, and the kit has no keys")
	}
	binding, err := d.binding()
	if err != nil {
		return err
	}
	return d.send(&wire.Proof{Proof: wire.ProofOf(*d.cfg.DeviceKey(d.id), c.Nonce, binding, d.id)})
}

// binding is the TLS exporter of the connection, zeros where it is not used.
func (d *device) binding() (b [32]byte, err error) {
	c, ok := d.conn.(*tls.Conn)
	if !ok || d.cfg.NoChannelBinding {
		return b, nil
	}
	state := c.ConnectionState()
	key, err := state.ExportKeyingMaterial(wire.ExporterLabel, nil, len(b))
	if err != nil {
		return b, fmt.Errorf("TLS exporter: %w", err)
	}
	return [32]byte(key), nil
}

// open connects and introduces the device.
func (d *device) open(token wire.Token) error {
	if err := d.dial(); err != nil {
		return err
	}
	err := d.hello(token)
	var refusal *wire.Error
	if errors.As(err, &refusal) && refusal.Code == wire.CodeUnknownClient && token.IsZero() {
		return cannotTry("the gateway does not enrol device %s: register it", d.id)
	}
	return err
}

// request is one to the echo service.
func (d *device) request(body string) *wire.Request {
	d.lastID++
	return &wire.Request{ID: d.lastID, Token: d.token, Service: d.cfg.Service, Body: []byte(body)}
}

// ask sends a request and wants its answer.
func (d *device) ask(body string) error {
	return d.exchange(d.request(body))
}

// exchange sends a request and wants its answer.
func (d *device) exchange(r *wire.Request) error {
	if err := d.send(r); err != nil {
		return err
	}
	return d.answered(r)
}

// openRefused connects and wants HELLO with that token to be refused.
func (d *device) openRefused(token wire.Token, codes ...wire.Code) error {
	if err := d.dial(); err != nil {
		return err
	}
	if err := d.send(&wire.Hello{ClientID: d.id, Token: token}); err != nil {
		return err
	}
	return d.refused(d.cfg.AnswerTime, codes...)
}

// answered wants the answer to a request.
func (d *device) answered(r *wire.Request) error {
	var resp wire.Response
	if err := d.next(&resp); err != nil {
		return err
	}
	if resp.ID != r.ID || !bytes.Equal(resp.Body, r.Body) {
		return fmt.Errorf("request %d with %.40q was answered by %d with %.40q", r.ID, r.Body, resp.ID, resp.Body)
	}
	return nil
}

// beat sends a heartbeat with a token and wants its ack.
func (d *device) beat(token wire.Token) (wire.HeartbeatAck, error) {
	var ack wire.HeartbeatAck
	if err := d.send(&wire.Heartbeat{Token: token}); err != nil {
		return ack, err
	}
	err := d.next(&ack)
	return ack, err
}

// refused wants an ERROR of one of these codes, as the connection's last word.
func (d *device) refused(within time.Duration, codes ...wire.Code) error {
	f, err := d.read(within)
	if err != nil {
		return fmt.Errorf("waiting for ERROR: %w", err)
	}
	return d.refusedBy(f, codes...)
}

// refusedBy is refused for a frame that has been read.
func (d *device) refusedBy(f wire.Frame, codes ...wire.Code) error {
	var e wire.Error
	if err := d.take(f, &e); err != nil {
		return err
	}
	known := false
	for _, c := range codes {
		known = known || e.Code == c
	}
	switch {
	case !known:
		return fmt.Errorf("want %v", codes)
	case !e.Close:
		return errors.New("its close is not true")
	}
	return d.ended(d.cfg.AnswerTime)
}

// ended wants the end of the connection, and nothing before it.
func (d *device) ended(within time.Duration) error {
	f, err := d.read(within)
	var over *hungUp
	switch {
	case errors.As(err, &over):
		d.saw("closed")
		return nil
	case err != nil:
		return fmt.Errorf("the connection is not closed: %w", err)
	}
	e := &wire.Error{}
	if f.Type == wire.TypeError && wire.Unmarshal(f.Version, f.Payload, e) == nil {
		return fmt.Errorf("got ERROR in place of the end: %w", e)
	}
	return fmt.Errorf("got %s in place of the end", f.Type)
}

// answeredWith wants an ERROR about request id that does not close.
func (d *device) answeredWith(id uint32, code wire.Code) (*wire.Error, error) {
	var e wire.Error
	if err := d.next(&e); err != nil {
		return nil, err
	}
	switch {
	case e.Code != code:
		return nil, fmt.Errorf("want %s", code)
	case !e.HasID || e.ID != id:
		return nil, fmt.Errorf("it does not name request %d", id)
	case e.Close:
		return nil, errors.New("its close is true")
	}
	return &e, nil
}

// sendProof answers the challenge with the proof of whoever d.id is.
func (d *device) sendProof() error { return d.prove(d.challenge) }

// inAnyOrder wants one frame of each type.
func (d *device) inAnyOrder(types ...wire.Type) error {
	missing := make(map[wire.Type]bool, len(types))
	for _, t := range types {
		missing[t] = true
	}
	for range types {
		f, err := d.read(d.cfg.AnswerTime)
		if err != nil {
			return err
		}
		if !missing[f.Type] {
			return fmt.Errorf("got %s %.80q", f.Type, f.Payload)
		}
		delete(missing, f.Type)
		d.saw("%s", f.Type)
	}
	return nil
}
