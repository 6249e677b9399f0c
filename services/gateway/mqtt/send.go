package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/sdk/wire"
)

// To the device.

// errNotForMQTT: a frame that this device cannot be sent.
var errNotForMQTT = errors.New("mqtt: the frame has no place in MQTT")

// Send adds to dst the packets that a frame becomes: none, where the device did not subscribe to their topic.
func (t *Translator) Send(dst []byte, f wire.Frame) ([]byte, error) {
	out := bytes.NewBuffer(dst)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return dst, nil
	}
	err := errNotForMQTT
	switch f.Type {
	case wire.TypeWelcome:
		err = nil // Welcomed knows more
		t.sendConnack(out)
	case wire.TypeResponse:
		var m wire.Response
		if err = wire.Unmarshal(f.Version, f.Payload, &m); err == nil {
			t.sendResponse(out, &m)
		}
	case wire.TypeError:
		var m wire.Error
		if err = wire.Unmarshal(f.Version, f.Payload, &m); err == nil {
			t.sendError(out, &m)
		}
	case wire.TypeHeartbeatAck:
		var m wire.HeartbeatAck
		if err = wire.Unmarshal(f.Version, f.Payload, &m); err == nil {
			t.sendHeartbeatAck(out, &m)
		}
	case wire.TypePush:
		var m wire.Push
		if err = wire.Unmarshal(f.Version, f.Payload, &m); err == nil {
			t.sendPush(out, &m)
		}
	case wire.TypeGoaway:
		var m wire.Goaway
		if err = wire.Unmarshal(f.Version, f.Payload, &m); err == nil {
			t.goaway = true
			t.publish(out, topicGoaway, payloadOf(&m))
		}
	}
	if err != nil {
		return dst, fmt.Errorf("%s: %w", f.Type, err)
	}
	return out.Bytes(), nil
}

// Goodbye is the packet before the connection closes, if there is something to say that was not said. nil: there is not.
func (t *Translator) Goodbye() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || !t.welcomed || !t.goaway {
		return nil
	}
	out := new(bytes.Buffer)
	t.disconnect(out, packets.ErrServerShuttingDown.Code, packets.Properties{ReasonString: "connect again"})
	return out.Bytes()
}

// encode writes a packet of the connection's version. mu is held.
func (t *Translator) encode(out *bytes.Buffer, kind byte, pk *packets.Packet) {
	pk.FixedHeader.Type, pk.ProtocolVersion = kind, t.version
	pk.Mods = packets.Mods{MaxSize: uint32(t.connect.packetMax), DisallowProblemInfo: t.connect.quiet && kind != packets.Connack && kind != packets.Disconnect}
	before := out.Len()
	var err error
	switch kind {
	case packets.Connack:
		err = pk.ConnackEncode(out)
	case packets.Publish:
		err = pk.PublishEncode(out)
	case packets.Puback:
		err = pk.PubackEncode(out)
	case packets.Suback:
		err = pk.SubackEncode(out)
	case packets.Unsuback:
		err = pk.UnsubackEncode(out)
	case packets.Pingresp:
		err = pk.PingrespEncode(out)
	case packets.Disconnect:
		err = pk.DisconnectEncode(out)
	}
	if err != nil {
		out.Truncate(before) // a packet identifier that is 0, which none of ours is
	}
}

// publish sends a message of QoS 0 to whoever subscribed, if it is not too long. mu is held.
func (t *Translator) publish(out *bytes.Buffer, topic string, payload []byte) (sent bool) {
	if _, ok := t.match(topic); !ok || t.tooLong(topic, payload) {
		return false
	}
	t.encode(out, packets.Publish, &packets.Packet{TopicName: topic, Payload: payload})
	return true
}

func (t *Translator) tooLong(topic string, payload []byte) bool {
	return t.connect.packetMax > 0 && publishSize(len(topic), len(payload)) > t.connect.packetMax
}

func (t *Translator) sendConnack(out *bytes.Buffer) {
	t.welcomed = true
	c := &t.connect
	pk := packets.Packet{}
	if t.version == version5 {
		p := &pk.Properties
		p.SessionExpiryIntervalFlag = c.askedExpiry // 0, whatever it asked for
		p.ReceiveMaximum = uint16(c.inFlight)
		p.MaximumQosFlag, p.MaximumQos = true, 1
		p.RetainAvailableFlag = true
		p.MaximumPacketSize = uint32(c.takes)
		p.SubIDAvailableFlag = true
		p.SharedSubAvailableFlag = true
		if c.nameless {
			p.AssignedClientID = c.client
		}
		if c.overruled {
			p.ServerKeepAliveFlag, p.ServerKeepAlive = true, uint16(c.keepAlive)
		}
	}
	t.encode(out, packets.Connack, &pk)
}

// takeRequest takes out a request that is being answered.
func (t *Translator) takeRequest(id uint32) (request, bool) {
	r, ok := t.requests[id]
	delete(t.requests, id)
	if len(t.requests) == 0 {
		t.requests = nil
	}
	return r, ok
}

func (t *Translator) sendResponse(out *bytes.Buffer, m *wire.Response) {
	r, ok := t.takeRequest(m.ID)
	if !ok {
		return
	}
	topic := topicOf(topicResponse, r.service, m.ID)
	if t.tooLong(topic, m.Body) {
		t.answerError(out, r, &wire.Error{
			Code: wire.CodeBackendError, ID: m.ID, HasID: true,
			Message: fmt.Sprintf("the answer of %d bytes is longer than the packets that the device takes", len(m.Body)),
		})
		return
	}
	t.publish(out, topic, m.Body)
	t.puback(out, r.packet, packets.CodeSuccess.Code, "")
}

// puback acknowledges a packet; 0: it was of QoS 0.
func (t *Translator) puback(out *bytes.Buffer, packet uint16, reason byte, text string) {
	if packet == 0 {
		return
	}
	t.encode(out, packets.Puback, &packets.Packet{PacketID: packet, ReasonCode: reason, Properties: packets.Properties{ReasonString: text}})
}

// answerError answers a request: it has been dealt with, so it is acknowledged as well.
func (t *Translator) answerError(out *bytes.Buffer, r request, e *wire.Error) {
	t.publish(out, topicOf(topicError, r.service, e.ID), payloadOf(e))
	t.puback(out, r.packet, pubackReason(e.Code), reasonString(e))
}

func (t *Translator) sendError(out *bytes.Buffer, e *wire.Error) {
	if e.HasID && !e.Close {
		if r, ok := t.takeRequest(e.ID); ok {
			t.answerError(out, r, e)
		}
		return
	}
	if !e.Close { // it answers a HEARTBEAT
		t.publish(out, topicTrouble, payloadOf(e))
		if b := t.takeBeat(); b.confirms {
			t.puback(out, b.packet, pubackReason(e.Code), reasonString(e))
		}
		return
	}
	reason := t.reason
	if reason == 0 || (e.Code != wire.CodeBadFrame && e.Code != wire.CodeFrameTooLarge && e.Code != wire.CodeBadVersion) {
		reason = closeReason(e.Code)
	}
	if !t.welcomed {
		t.refuse(out, e, reason)
		return
	}
	t.publish(out, topicTrouble, payloadOf(e))
	t.disconnect(out, reason, reasonProperties(e))
}

// refuse answers CONNECT. A connection on which none came is closed without a word, as MQTT has it.
func (t *Translator) refuse(out *bytes.Buffer, e *wire.Error, reason byte) {
	t.over = true
	switch {
	case t.version == 0:
	case t.version == version5:
		t.encode(out, packets.Connack, &packets.Packet{
			ReasonCode: connackReason(e.Code, reason), Properties: reasonProperties(e),
		})
	case e.Code == wire.CodeBadFrame && reason != packets.ErrBadUsernameOrPassword.Code &&
		reason != packets.ErrClientIdentifierNotValid.Code && reason != packets.ErrImplementationSpecificError.Code:
		// Malformed: 3.1.1 has no code for it.
	default:
		t.encode(out, packets.Connack, &packets.Packet{ReasonCode: connackCode(e.Code, reason)})
	}
}

// disconnect says why the connection ends, where the version has a packet for it.
func (t *Translator) disconnect(out *bytes.Buffer, reason byte, why packets.Properties) {
	t.over = true
	if t.version == version5 {
		t.encode(out, packets.Disconnect, &packets.Packet{ReasonCode: reason, Properties: why})
	}
}

func (t *Translator) takeBeat() (b beat) {
	if len(t.beats) > 0 {
		b = t.beats[0]
		t.beats = t.beats[1:]
	}
	if len(t.beats) == 0 {
		t.beats = nil
	}
	return b
}

func (t *Translator) sendHeartbeatAck(out *bytes.Buffer, m *wire.HeartbeatAck) {
	b := t.takeBeat()
	if b.confirms {
		t.fresh, t.told = nil, false
	}
	if !m.Token.IsZero() {
		// Each ack repeats the token until it is used; the device is told once.
		if payload := payloadOf(m); !bytes.Equal(payload, t.fresh) {
			t.fresh, t.told = payload, false
		}
	}
	if t.fresh != nil && !t.told {
		t.told = t.publish(out, topicToken, t.fresh)
	}
	if b.confirms {
		t.puback(out, b.packet, packets.CodeSuccess.Code, "")
		return
	}
	t.encode(out, packets.Pingresp, &packets.Packet{})
}

func (t *Translator) sendPush(out *bytes.Buffer, m *wire.Push) {
	topic := topicOf(topicPush, m.Service, m.ID)
	qos, ok := t.match(topic)
	t.reserved = max(t.reserved-1, 0)
	if !ok {
		return // it has just unsubscribed
	}
	pk := packets.Packet{TopicName: topic, Payload: m.Body}
	if pk.FixedHeader.Qos = qos; qos == 1 {
		if t.unacked == nil {
			t.unacked = make(map[uint16]uint32)
		}
		if len(t.unacked) == 65535 {
			return
		}
		for {
			t.packetID++
			if _, used := t.unacked[t.packetID]; !used && t.packetID != 0 {
				break
			}
		}
		pk.PacketID = t.packetID
		t.unacked[t.packetID] = m.ID
	}
	t.encode(out, packets.Publish, &pk)
}

// reasonString is an error as MQTT 5 carries it.
func reasonString(e *wire.Error) string { return shorten(e.Error(), 512) }

// retryAfter is the user property that says how long to wait, in milliseconds: MQTT 5 has none of its own.
const retryAfter = "retry_after_ms"

// reasonProperties say why CONNECT was refused, or the connection ends.
func reasonProperties(e *wire.Error) packets.Properties {
	p := packets.Properties{ReasonString: reasonString(e)}
	if e.RetryAfter > 0 {
		p.User = []packets.UserProperty{{Key: retryAfter, Val: strconv.FormatInt(e.RetryAfter.Milliseconds(), 10)}}
	}
	return p
}

// pubackReason is the reason of MQTT 5 for an error that answers a request.
func pubackReason(c wire.Code) byte {
	switch c {
	case wire.CodeNoSuchService:
		return packets.ErrTopicNameInvalid.Code
	case wire.CodeBadFrame:
		return packets.ErrPayloadFormatInvalid.Code
	case wire.CodeRateLimited:
		return packets.ErrQuotaExceeded.Code
	}
	return packets.ErrImplementationSpecificError.Code
}

// closeReason is the reason of MQTT 5 for an error that ends a connection.
func closeReason(c wire.Code) byte {
	switch c {
	case wire.CodeTakenOver:
		return packets.ErrSessionTakenOver.Code
	case wire.CodeKicked:
		return packets.ErrAdministrativeAction.Code
	case wire.CodeIdleTimeout, wire.CodeHeartbeatTimeout:
		return packets.ErrKeepAliveTimeout.Code
	case wire.CodeBadFrame:
		return packets.ErrProtocolViolation.Code
	case wire.CodeFrameTooLarge:
		return packets.ErrPacketTooLarge.Code
	case wire.CodeRateLimited:
		return packets.ErrMessageRateTooHigh.Code
	case wire.CodeAuthRequired, wire.CodeBadToken, wire.CodeTokenExpired, wire.CodeTokenReused, wire.CodeRevoked, wire.CodeUnknownClient, wire.CodeBadProof:
		return packets.ErrNotAuthorized.Code
	case wire.CodeAuthUnavailable, wire.CodeOverloaded:
		return packets.ErrServerBusy.Code
	}
	return packets.ErrUnspecifiedError.Code
}

// connackReason is the reason of MQTT 5 for a CONNECT that is refused.
func connackReason(c wire.Code, reason byte) byte {
	switch c {
	case wire.CodeBadToken, wire.CodeTokenExpired, wire.CodeTokenReused:
		return packets.ErrBadUsernameOrPassword.Code
	case wire.CodeRevoked:
		return packets.ErrBanned.Code
	case wire.CodeAuthUnavailable:
		return packets.ErrServerUnavailable.Code
	case wire.CodeRateLimited:
		return packets.ErrConnectionRateExceeded.Code
	}
	return reason
}

// connackCode is the return code of 3.1.1 for a CONNECT that is refused.
func connackCode(c wire.Code, reason byte) byte {
	const (
		unacceptableVersion = 1
		identifierRejected  = 2
		serverUnavailable   = 3
		badUserOrPassword   = 4
		notAuthorized       = 5
	)
	switch c {
	case wire.CodeBadVersion:
		return unacceptableVersion
	case wire.CodeBadToken, wire.CodeTokenExpired, wire.CodeTokenReused, wire.CodeRevoked:
		return badUserOrPassword
	case wire.CodeAuthUnavailable, wire.CodeOverloaded, wire.CodeRateLimited, wire.CodeInternal, wire.CodeAuthTimeout:
		return serverUnavailable
	case wire.CodeBadFrame:
		switch reason {
		case packets.ErrBadUsernameOrPassword.Code:
			return badUserOrPassword
		case packets.ErrClientIdentifierNotValid.Code:
			return identifierRejected
		}
	}
	return notAuthorized
}
