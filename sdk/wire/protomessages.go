package wire

// Each message's codec for version 2, with the field numbers of device.proto.

func (m *Hello) setProto(f protoField) error {
	d := protoDecoder{in: TypeHello, f: f}
	switch f.num {
	case 1:
		m.ClientID = d.bytes32("client_id")
	case 2:
		m.Token = d.token()
	case 3:
		m.Agent = cut(d.string("agent", MaxPayload), MaxAgent)
	}
	return d.err
}
func (m *Hello) appendProto(b []byte) []byte {
	b = protoBytes(b, 1, m.ClientID[:])
	b = protoToken(b, 2, m.Token)
	return protoStringSet(b, 3, m.Agent)
}

func (m *Welcome) setProto(f protoField) error {
	d := protoDecoder{in: TypeWelcome, f: f}
	switch f.num {
	case 1:
		m.Token = d.token()
	case 2:
		m.ExpiresAt = d.time("expires_at")
	case 3:
		m.Heartbeat = d.millis("heartbeat_ms")
	case 4:
		m.IdleTimeout = d.millis("idle_timeout_ms")
	case 5:
		m.MaxFrame = int(d.uint("max_frame", MaxPayload, "a number of bytes"))
	case 6:
		m.Session = d.string("session", MaxPayload)
	}
	return d.err
}
func (m *Welcome) appendProto(b []byte) []byte {
	b = protoBytes(b, 1, m.Token[:])
	b = protoTime(b, 2, m.ExpiresAt)
	b = protoMillis(b, 3, m.Heartbeat)
	b = protoMillis(b, 4, m.IdleTimeout)
	b = protoUintSet(b, 5, uint64(m.MaxFrame))
	return protoStringSet(b, 6, m.Session)
}

func (m *Request) setProto(f protoField) error {
	d := protoDecoder{in: TypeRequest, f: f}
	switch f.num {
	case 1:
		m.ID = d.uint32("id")
	case 2:
		m.Token = d.token()
	case 3:
		m.Service = d.service()
	case 4:
		m.Body = d.bytes("body")
	}
	return d.err
}
func (m *Request) appendProto(b []byte) []byte {
	b = protoUintSet(b, 1, uint64(m.ID))
	b = protoToken(b, 2, m.Token)
	b = protoString(b, 3, m.Service)
	return protoBytesSet(b, 4, m.Body)
}

func (m *Response) setProto(f protoField) error {
	d := protoDecoder{in: TypeResponse, f: f}
	switch f.num {
	case 1:
		m.ID = d.uint32("id")
	case 2:
		m.Body = d.bytes("body")
	}
	return d.err
}
func (m *Response) appendProto(b []byte) []byte {
	return protoBytesSet(protoUintSet(b, 1, uint64(m.ID)), 2, m.Body)
}

func (m *Heartbeat) setProto(f protoField) error {
	d := protoDecoder{in: TypeHeartbeat, f: f}
	m.Token = d.token()
	return d.err
}
func (m *Heartbeat) appendProto(b []byte) []byte { return protoToken(b, 1, m.Token) }

func (m *HeartbeatAck) setProto(f protoField) error {
	d := protoDecoder{in: TypeHeartbeatAck, f: f}
	switch f.num {
	case 1:
		m.Token = d.token()
	case 2:
		m.ExpiresAt = d.time("expires_at")
	}
	return d.err
}
func (m *HeartbeatAck) appendProto(b []byte) []byte {
	if m.Token.IsZero() {
		return b
	}
	return protoTime(protoToken(b, 1, m.Token), 2, m.ExpiresAt)
}

func (m *Push) setProto(f protoField) error {
	d := protoDecoder{in: TypePush, f: f}
	switch f.num {
	case 1:
		m.ID = d.uint32("id")
	case 2:
		m.Service = d.service()
	case 3:
		m.Body = d.bytes("body")
	}
	return d.err
}
func (m *Push) appendProto(b []byte) []byte {
	b = protoUintSet(b, 1, uint64(m.ID))
	b = protoString(b, 2, m.Service)
	return protoBytesSet(b, 3, m.Body)
}

func (m *PushAck) setProto(f protoField) error {
	d := protoDecoder{in: TypePushAck, f: f}
	m.ID = d.uint32("id")
	return d.err
}
func (m *PushAck) appendProto(b []byte) []byte { return protoUintSet(b, 1, uint64(m.ID)) }

func (e *Error) setProto(f protoField) error {
	d := protoDecoder{in: TypeError, f: f}
	switch f.num {
	case 1:
		e.Code = Code(d.string("code", MaxPayload))
	case 2:
		e.Message = d.string("message", MaxPayload)
	case 3:
		e.ID, e.HasID = d.uint32("id"), true
	case 4:
		e.RetryAfter = d.millis("retry_after_ms")
	case 5:
		e.Close = d.bool("close")
	}
	return d.err
}
func (e *Error) appendProto(b []byte) []byte {
	b = protoString(b, 1, string(e.Code))
	b = protoStringSet(b, 2, e.Message)
	if e.HasID {
		b = protoUint(b, 3, uint64(e.ID))
	}
	b = protoMillis(b, 4, e.RetryAfter)
	if e.Close {
		b = protoUint(b, 5, 1)
	}
	return b
}

func (m *Goaway) setProto(f protoField) error {
	d := protoDecoder{in: TypeGoaway, f: f}
	switch f.num {
	case 1:
		m.Reason = d.string("reason", MaxPayload)
	case 2:
		m.After = d.millis("after_ms")
	}
	return d.err
}
func (m *Goaway) appendProto(b []byte) []byte {
	return protoMillis(protoStringSet(b, 1, m.Reason), 2, m.After)
}

func (m *Challenge) setProto(f protoField) error {
	d := protoDecoder{in: TypeChallenge, f: f}
	m.Nonce = d.bytes32("nonce")
	return d.err
}
func (m *Challenge) appendProto(b []byte) []byte { return protoBytes(b, 1, m.Nonce[:]) }

func (m *Proof) setProto(f protoField) error {
	d := protoDecoder{in: TypeProof, f: f}
	m.Proof = d.bytes32("proof")
	return d.err
}
func (m *Proof) appendProto(b []byte) []byte { return protoBytes(b, 1, m.Proof[:]) }

func (m *Bye) setProto(protoField) error   { return nil }
func (m *Bye) appendProto(b []byte) []byte { return b }
