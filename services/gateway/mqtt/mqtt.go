// Package mqtt gives devices that speak MQTT 3.1.1 or 5 a session of the device protocol: it turns their packets into
// frames (package sdk/wire, version 2), and the gateway's frames into packets. docs/PROTOCOL.md, "MQTT", has the mapping.
//
//	tr := mqtt.NewTranslator(admit)
//	size, err := tr.PacketSize(buf) // 0: the header is not complete
//	in, err := tr.Receive(buf[:size])
//	...                             // in.Frame is the session's, in.Answer goes to the device
//	out, err = tr.Send(out, frame)  // the packets that a frame of the gateway's becomes
//
// It is no broker: nothing goes from device to device, nothing is retained or kept for a device that is away, and there is
// no will. It knows no sockets, clocks or queues, and does not judge tokens.
package mqtt

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/sdk/wire"
)

// The versions of MQTT, as CONNECT has them.
const (
	version311 = 4
	version5   = 5
)

// Topics. <id> is a decimal number as of the device protocol's ids.
const (
	topicRequest  = "req/"  // <service>/<id>, from the device
	topicResponse = "res/"  // <service>/<id>
	topicError    = "err/"  // <service>/<id>: the ERROR that answers the request
	topicPush     = "push/" // <service>/<id>

	// Payloads of these are those of the frames, in JSON.
	topicToken   = "goshield/token"  // HEARTBEAT_ACK with a token; from the device: HEARTBEAT, it has stored the token
	topicGoaway  = "goshield/goaway" // GOAWAY
	topicTrouble = "goshield/error"  // an ERROR that answers no request
)

const (
	// connectMax is the longest CONNECT that is taken, in bytes.
	connectMax = 4096
	// envelope is how much longer a REQUEST's payload can be than the PUBLISH that it comes of.
	envelope = 17
	// maxFilters is how many subscriptions a device may have, maxFilter how long each may be.
	maxFilters = 32
	maxFilter  = 256
)

// In is what a packet of the device's became.
type In struct {
	Frame  []byte // for the session; nil: none
	Answer []byte // packets for the device; nil: none
}

// Translator is one connection's. The reader calls PacketSize, Receive and Welcomed, the writer Send and Goodbye; what else
// there is may be called by anybody.
type Translator struct {
	admit func(bytes int) bool // whether a packet that becomes no frame may be answered; static

	// Owned by the reader.
	token     wire.Token // the one that this connection stands for
	presented wire.Token // the one in CONNECT, or confirmed since
	limit     int        // longest packet taken, in bytes
	frame     []byte     // reused

	patience atomic.Int64 // see Patience

	mu       sync.Mutex
	version  byte // of CONNECT; 0: none has come
	connect  connection
	welcomed bool
	over     bool // the last packet was written
	goaway   bool
	reason   byte // of MQTT 5, for the error that Receive returned last
	subs     []subscription
	requests map[uint32]request // in flight, by id
	beats    []beat             // in flight
	fresh    []byte             // payload of a token that the device has not shown yet; nil: none
	told     bool               // of fresh
	unacked  map[uint16]uint32  // ids of pushes, by packet
	reserved int                // pushes that were let in and not sent yet
	packetID uint16             // the last one used
}

// connection is what CONNECT and WELCOME settled.
type connection struct {
	json        bool // bodies are JSON
	keepAlive   int  // seconds; 0: none
	askedExpiry bool // for a session that outlives the connection
	nameless    bool // it left its client identifier to us
	client      string
	receiveMax  int // pushes in flight
	packetMax   int // longest packet for the device; 0: any
	overruled   bool
	quiet       bool // it wants no reason strings
	inFlight    int  // requests, as it is told
	takes       int  // longest packet from it, as it is told
}

// request is a REQUEST in flight.
type request struct {
	service string
	packet  uint16 // to be acknowledged; 0: QoS 0
}

// beat is a HEARTBEAT in flight: a PINGREQ, or the packet that confirmed a token.
type beat struct {
	confirms bool
	packet   uint16 // to be acknowledged; 0: QoS 0
}

// NewTranslator makes one. admit is asked for each packet that costs work and becomes no frame; false: it is not to be
// answered.
func NewTranslator(admit func(bytes int) bool) *Translator {
	return &Translator{admit: admit, limit: connectMax}
}

// JSON reports whether the device's bodies are JSON, once CONNECT has come.
func (t *Translator) JSON() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.connect.json
}

// Patience is how long the device may be silent: one and a half times its keep alive, as MQTT has it. 0: for ever.
func (t *Translator) Patience() time.Duration { return time.Duration(t.patience.Load()) }

// Welcomed says what the WELCOME that follows tells, before another packet is received, and how many requests may be in
// flight.
func (t *Translator) Welcomed(w *wire.Welcome, inFlight int) {
	t.token = w.Token
	t.limit = max(w.MaxFrame-envelope, 0)
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &t.connect
	c.inFlight, c.takes = min(inFlight, 65535), t.limit
	if most := longestKeepAlive(w); t.version == version5 && (c.keepAlive == 0 || c.keepAlive > most) {
		c.keepAlive, c.overruled = most, true
	}
	t.patience.Store(int64(c.keepAlive) * int64(time.Second) * 3 / 2)
	if w.Token != t.presented {
		t.fresh = payloadOf(&wire.HeartbeatAck{Token: w.Token, ExpiresAt: w.ExpiresAt})
	}
}

// longestKeepAlive, in seconds, is what a device of MQTT 5 is told to keep: the interval of heartbeats, and short enough
// for the idle timeout.
func longestKeepAlive(w *wire.Welcome) int {
	most := w.IdleTimeout / 2
	if w.Heartbeat > 0 {
		most = min(most, w.Heartbeat)
	}
	return int(min(max(most/time.Second, 1), 65535))
}

// Push is whether a PUSH can be sent, as MayPush found.
type Push uint8

// What becomes of a PUSH.
const (
	PushTaken   Push = iota // Send must follow, with exactly this one
	PushFull                // the device has as many unacknowledged as it takes
	PushRefused             // it has no subscription for it, or does not take as long a packet
)

// MayPush asks whether a PUSH of a body of so many bytes can be sent.
func (t *Translator) MayPush(service string, bytes int) Push {
	t.mu.Lock()
	defer t.mu.Unlock()
	const longestID = len("/4294967295")
	qos, subscribed := t.match(topicPush + service + "/0")
	switch {
	case !subscribed || !isLevel(service):
		return PushRefused
	case t.connect.packetMax > 0 && publishSize(len(topicPush)+len(service)+longestID, bytes) > t.connect.packetMax:
		return PushRefused
	case qos == 1 && len(t.unacked)+t.reserved >= t.connect.receiveMax:
		return PushFull
	}
	t.reserved++
	return PushTaken
}

// publishSize is the most that a PUBLISH takes, of MQTT 5 and QoS 1.
func publishSize(topic, payload int) int { return 5 + 2 + topic + 2 + 1 + payload }

// refusal is an error for the device, and its reason in MQTT 5.
func (t *Translator) refusal(reason packets.Code, format string, args ...any) *wire.Error {
	code := wire.CodeBadFrame
	switch reason.Code {
	case packets.ErrPacketTooLarge.Code:
		code = wire.CodeFrameTooLarge
	case packets.ErrUnsupportedProtocolVersion.Code:
		code = wire.CodeBadVersion
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reason = reason.Code
	return wire.Errorf(code, format, args...)
}

// payloadOf is a message's payload in version 1, as text for people and simple devices.
func payloadOf(m wire.Message) []byte {
	b, err := wire.Append(nil, wire.Version1, m)
	if err != nil {
		return []byte("{}") // longer than a frame: cannot be, of what is sent here
	}
	return b[wire.HeaderSize:]
}
