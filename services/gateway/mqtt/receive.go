package mqtt

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/goshield/goshield/sdk/wire"
)

// From the device.

// PacketSize is how many bytes the packet has that buf begins with; 0: its header is not complete. The error, a
// *wire.Error, refuses it from its header.
func (t *Translator) PacketSize(buf []byte) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	if first := buf[0] >> 4; (first == packets.Connect) == t.connected() {
		if first == packets.Connect {
			return 0, t.refusal(packets.ErrProtocolViolationSecondConnect, "a second CONNECT")
		}
		return 0, t.refusal(packets.ErrProtocolViolationRequireFirstConnect, "the first packet is no CONNECT")
	}
	length := 0
	for i, b := range buf[1:] {
		if i == 4 {
			return 0, t.refusal(packets.ErrMalformedVariableByteInteger, "a packet's length has more than four bytes")
		}
		length |= int(b&0x7f) << (7 * i)
		if b&0x80 != 0 {
			continue
		}
		size := 2 + i + length
		if size > t.limit {
			return 0, t.refusal(packets.ErrPacketTooLarge, "a packet of %d bytes is over the limit of %d", size, t.limit)
		}
		return size, nil
	}
	return 0, nil
}

func (t *Translator) connected() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version != 0
}

// Receive takes one packet, of the size that PacketSize said. What it returns is valid until the next call. The error, a
// *wire.Error, is the end of the connection.
func (t *Translator) Receive(packet []byte) (In, error) {
	pk, e := t.decode(packet)
	if e != nil {
		return In{}, e
	}
	switch pk.FixedHeader.Type {
	case packets.Connect:
		return t.receiveConnect(pk)
	case packets.Publish:
		return t.receivePublish(pk, len(packet))
	case packets.Puback:
		return t.receivePuback(pk, len(packet))
	case packets.Subscribe:
		return t.receiveSubscribe(pk, len(packet))
	case packets.Unsubscribe:
		return t.receiveUnsubscribe(pk, len(packet))
	case packets.Pingreq:
		return t.heartbeat(t.token, beat{})
	case packets.Disconnect:
		t.mu.Lock()
		t.over = true
		t.mu.Unlock()
		return t.framed(&wire.Bye{})
	}
	return In{}, t.refusal(packets.ErrProtocolViolation, "%s is no packet that a device sends here", packets.PacketNames[pk.FixedHeader.Type])
}

// framed makes a frame of a message.
func (t *Translator) framed(m wire.Message) (In, error) {
	var err error
	if t.frame, err = wire.Append(t.frame[:0], wire.Version2, m); err != nil {
		return In{}, t.refusal(packets.ErrPacketTooLarge, "the packet is too long for a frame")
	}
	return In{Frame: t.frame}, nil
}

// decode parses a packet. The library reads past the end of some that are malformed (a SUBSCRIBE of MQTT 5 that ends in a
// filter); a fault there is the packet's.
func (t *Translator) decode(packet []byte) (pk *packets.Packet, refused *wire.Error) {
	defer func() {
		if recover() != nil {
			pk, refused = nil, t.refusal(packets.ErrMalformedPacket, "a packet is malformed")
		}
	}()
	body := packet[1:]
	for body[0]&0x80 != 0 {
		body = body[1:]
	}
	body = body[1:]
	t.mu.Lock()
	pk = &packets.Packet{ProtocolVersion: t.version}
	t.mu.Unlock()
	if err := pk.FixedHeader.Decode(packet[0]); err != nil {
		return nil, t.malformed(pk, err)
	}
	pk.FixedHeader.Remaining = len(body)
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Subscribe:
		err = pk.SubscribeDecode(body)
	case packets.Unsubscribe:
		err = pk.UnsubscribeDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	if err != nil {
		return nil, t.malformed(pk, err)
	}
	return pk, nil
}

func (t *Translator) malformed(pk *packets.Packet, err error) *wire.Error {
	if pk.FixedHeader.Type == packets.Connect && pk.ProtocolVersion != version311 && pk.ProtocolVersion != version5 {
		return t.badVersion(pk)
	}
	return t.refusal(packets.ErrMalformedPacket, "%s: %v", packets.PacketNames[pk.FixedHeader.Type], err)
}

// badVersion refuses a version of MQTT; the refusal is written as 3.1.1 has it, or 5 if it is newer.
func (t *Translator) badVersion(pk *packets.Packet) *wire.Error {
	t.mu.Lock()
	t.version = version311
	if pk.ProtocolVersion > version5 {
		t.version = version5
	}
	t.mu.Unlock()
	return t.refusal(packets.ErrUnsupportedProtocolVersion, "MQTT 3.1.1 and 5 are spoken here")
}

// bytesSuffix behind the client_id in the user name says that bodies are any bytes.
const (
	bytesSuffix = "/bytes"
	jsonSuffix  = "/json"
)

func (t *Translator) receiveConnect(pk *packets.Packet) (In, error) {
	c := &pk.Connect
	switch {
	case string(c.ProtocolName) == "MQIsdp" && pk.ProtocolVersion == 3:
		return In{}, t.badVersion(pk)
	case string(c.ProtocolName) != "MQTT":
		return In{}, t.refusal(packets.ErrProtocolViolationProtocolName, "CONNECT names another protocol than MQTT")
	case pk.ProtocolVersion != version311 && pk.ProtocolVersion != version5:
		return In{}, t.badVersion(pk)
	}
	t.mu.Lock()
	t.version = pk.ProtocolVersion
	t.mu.Unlock()
	user, e := t.checkConnect(pk)
	if e != nil {
		return In{}, e
	}
	name, isBytes := strings.CutSuffix(user, bytesSuffix)
	name, isJSON := strings.CutSuffix(name, jsonSuffix)
	id, err := wire.ParseClientID(name)
	if err != nil || isBytes && isJSON {
		return In{}, t.refusal(packets.ErrBadUsernameOrPassword, "the user name is no client_id")
	}
	hello := wire.Hello{ClientID: id, Agent: "MQTT 3.1.1"}
	if pk.ProtocolVersion == version5 {
		hello.Agent = "MQTT 5"
	}
	if len(c.Password) > 0 {
		if hello.Token, err = wire.ParseToken(string(c.Password)); err != nil || hello.Token.IsZero() {
			e := wire.Errorf(wire.CodeBadToken, "the password is no token")
			return In{}, e
		}
	}
	t.presented = hello.Token
	t.mu.Lock()
	t.connect = connection{
		json: !isBytes, keepAlive: int(c.Keepalive), client: id.String(),
		nameless: c.ClientIdentifier == "", askedExpiry: pk.Properties.SessionExpiryInterval > 0,
		receiveMax: 65535, packetMax: int(pk.Properties.MaximumPacketSize),
		quiet: pk.Properties.RequestProblemInfoFlag && pk.Properties.RequestProblemInfo == 0,
	}
	if pk.Properties.ReceiveMaximum > 0 {
		t.connect.receiveMax = int(pk.Properties.ReceiveMaximum)
	}
	t.mu.Unlock()
	return t.framed(&hello)
}

// checkConnect refuses what a CONNECT must not have, and returns the user name.
func (t *Translator) checkConnect(pk *packets.Packet) (user string, refused *wire.Error) {
	c := &pk.Connect
	switch {
	case pk.ReservedBit != 0:
		return "", t.refusal(packets.ErrMalformedPacket, "CONNECT's reserved flag is set")
	case c.WillFlag:
		return "", t.refusal(packets.ErrImplementationSpecificError, "there are no wills here")
	case c.WillQos != 0 || c.WillRetain:
		return "", t.refusal(packets.ErrMalformedPacket, "CONNECT's flags of a will are set without one")
	case pk.Properties.AuthenticationMethod != "":
		return "", t.refusal(packets.ErrBadAuthenticationMethod, "there is no enhanced authentication here")
	case c.ClientIdentifier == "" && pk.ProtocolVersion == version311 && !c.Clean:
		return "", t.refusal(packets.ErrClientIdentifierNotValid, "a client identifier is needed without a clean session")
	case !c.UsernameFlag:
		return "", t.refusal(packets.ErrBadUsernameOrPassword, "the user name must be the client_id")
	}
	return string(c.Username), nil
}

func (t *Translator) receivePublish(pk *packets.Packet, size int) (In, error) {
	h := &pk.FixedHeader
	code := pk.PublishValidate(0)
	switch {
	case h.Qos == 2:
		return In{}, t.refusal(packets.ErrQosNotSupported, "there is no QoS 2 here")
	case h.Retain:
		return In{}, t.refusal(packets.ErrRetainNotSupported, "nothing is retained here")
	case h.Dup && h.Qos == 0:
		return In{}, t.refusal(packets.ErrProtocolViolationDupNoQos, "a PUBLISH of QoS 0 is marked as sent again")
	case code != packets.CodeSuccess:
		return In{}, t.refusal(code, "PUBLISH: %s", code.Reason)
	case pk.TopicName == topicToken:
		return t.receiveConfirmation(pk)
	}
	service, id, ok := parseRequest(pk.TopicName)
	if !ok {
		return In{}, t.refusal(packets.ErrTopicNameInvalid, "the topic is none of those that a device publishes to: req/<service>/<id>")
	}
	if len(service) > wire.MaxServiceName {
		return In{}, t.refusal(packets.ErrTopicNameInvalid, "the service's name has more than %d bytes", wire.MaxServiceName)
	}
	t.mu.Lock()
	if t.requests == nil {
		t.requests = make(map[uint32]request)
	}
	if _, twice := t.requests[id]; !twice { // else the session refuses it
		t.requests[id] = request{service: strings.Clone(service), packet: pk.PacketID}
	}
	t.mu.Unlock()
	return t.framed(&wire.Request{ID: id, Token: t.token, Service: service, Body: pk.Payload})
}

// receiveConfirmation takes a device's word that it has stored the new token. From here on the connection stands for that
// one.
func (t *Translator) receiveConfirmation(pk *packets.Packet) (In, error) {
	var stored wire.Heartbeat
	if err := wire.Unmarshal(wire.Version1, pk.Payload, &stored); err != nil || stored.Token.IsZero() {
		return In{}, t.refusal(packets.ErrPayloadFormatInvalid, `what is published to `+topicToken+` must be {"token":"..."}`)
	}
	t.token, t.presented = stored.Token, stored.Token
	return t.heartbeat(stored.Token, beat{confirms: true, packet: pk.PacketID})
}

func (t *Translator) heartbeat(token wire.Token, b beat) (In, error) {
	t.mu.Lock()
	t.beats = append(t.beats, b)
	t.mu.Unlock()
	return t.framed(&wire.Heartbeat{Token: token})
}

// receivePuback ends the wait of a push. One for no push costs as much as a frame.
func (t *Translator) receivePuback(pk *packets.Packet, size int) (In, error) {
	t.mu.Lock()
	id, ok := t.unacked[pk.PacketID]
	delete(t.unacked, pk.PacketID)
	if len(t.unacked) == 0 {
		t.unacked = nil
	}
	t.mu.Unlock()
	switch {
	case !ok:
		t.admit(size)
		return In{}, nil
	case pk.ReasonCode >= packets.ErrUnspecifiedError.Code:
		return In{}, nil // the device has not taken it: its sender hears nothing
	}
	return t.framed(&wire.PushAck{ID: id})
}

func (t *Translator) receiveSubscribe(pk *packets.Packet, size int) (In, error) {
	if code := pk.SubscribeValidate(); code != packets.CodeSuccess || pk.PacketID == 0 {
		return In{}, t.refusal(packets.ErrProtocolViolation, "SUBSCRIBE: a packet identifier and a filter are needed")
	}
	if len(pk.Properties.SubscriptionIdentifier) > 0 {
		return In{}, t.refusal(packets.ErrSubscriptionIdentifiersNotSupported, "there are no subscription identifiers here")
	}
	ack := packets.Packet{PacketID: pk.PacketID, ReasonCodes: make([]byte, len(pk.Filters))}
	admitted := t.admit(size)
	t.mu.Lock()
	defer t.mu.Unlock()
	forToken := false
	for i, f := range pk.Filters {
		ack.ReasonCodes[i] = t.subscribe(f, admitted)
		levels, _ := parseFilter(f.Filter)
		forToken = forToken || ack.ReasonCodes[i] < packets.ErrUnspecifiedError.Code && matches(levels, topicToken)
	}
	out := new(bytes.Buffer)
	t.encode(out, packets.Suback, &ack)
	if forToken && t.fresh != nil { // as one that is retained
		t.publish(out, topicToken, t.fresh)
		t.told = true
	}
	return In{Answer: out.Bytes()}, nil
}

// subscribe adds a subscription, or replaces the one of that filter, and returns what is granted. mu is held.
func (t *Translator) subscribe(f packets.Subscription, admitted bool) byte {
	levels, ok := parseFilter(f.Filter)
	fail := func(c packets.Code) byte {
		if t.version == version311 {
			return packets.ErrUnspecifiedError.Code
		}
		return c.Code
	}
	switch {
	case !admitted:
		return fail(packets.ErrQuotaExceeded)
	case !ok:
		return fail(packets.ErrTopicFilterInvalid)
	case levels[0] == "$share":
		return fail(packets.ErrSharedSubscriptionsNotSupported)
	}
	s := subscription{filter: strings.Clone(f.Filter), qos: min(f.Qos, 1)}
	s.levels = strings.Split(s.filter, "/") // of the clone: the packet's buffer is used again
	for i := range t.subs {
		if t.subs[i].filter == s.filter {
			t.subs[i] = s
			return s.qos
		}
	}
	if len(t.subs) >= maxFilters {
		return fail(packets.ErrQuotaExceeded)
	}
	t.subs = append(t.subs, s)
	return s.qos
}

func (t *Translator) receiveUnsubscribe(pk *packets.Packet, size int) (In, error) {
	if code := pk.UnsubscribeValidate(); code != packets.CodeSuccess || pk.PacketID == 0 {
		return In{}, t.refusal(packets.ErrProtocolViolation, "UNSUBSCRIBE: a packet identifier and a filter are needed")
	}
	t.admit(size) // it is carried out in any case: it takes nothing
	ack := packets.Packet{PacketID: pk.PacketID, ReasonCodes: make([]byte, len(pk.Filters))}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, f := range pk.Filters {
		ack.ReasonCodes[i] = packets.CodeNoSubscriptionExisted.Code
		for j := range t.subs {
			if t.subs[j].filter == f.Filter {
				t.subs = append(t.subs[:j], t.subs[j+1:]...)
				ack.ReasonCodes[i] = packets.CodeSuccess.Code
				break
			}
		}
	}
	out := new(bytes.Buffer)
	t.encode(out, packets.Unsuback, &ack)
	return In{Answer: out.Bytes()}, nil
}

// shorten cuts text so that it fits where MQTT has two bytes for a length, with room for the rest of a packet.
func shorten(text string, limit int) string {
	for len(text) > limit {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return text
}
