package wire

import "strconv"

// The members of each message, numbered from 0 by their place here and in
// setJSON.
var (
	helloFields     = []string{"client_id", "token", "agent"}
	welcomeFields   = []string{"token", "expires_at", "heartbeat_ms", "idle_timeout_ms", "max_frame", "session"}
	requestFields   = []string{"id", "token", "service", "body"}
	responseFields  = []string{"id", "body"}
	heartbeatFields = []string{"token"}
	ackFields       = []string{"token", "expires_at"}
	pushFields      = []string{"id", "service", "body"}
	pushAckFields   = []string{"id"}
	errorFields     = []string{"code", "message", "id", "retry_after_ms", "close"}
	goawayFields    = []string{"reason", "after_ms"}
	challengeFields = []string{"nonce"}
	proofFields     = []string{"proof"}
)

// Each message's codec: the members in the order they are written.

func (m *Hello) reset()                   { *m = Hello{} }
func (m *Hello) fields() ([]string, uint) { return helloFields, 0b1 }
func (m *Hello) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeHello}
	switch string(name) {
	case "client_id":
		m.ClientID = d.clientID(raw)
		return 0, d.err
	case "token":
		m.Token = d.token(raw)
		return 1, d.err
	case "agent":
		m.Agent = cut(d.string("agent", raw, MaxPayload), MaxAgent)
		return 2, d.err
	}
	return unknownField, nil
}
func (m *Hello) appendJSON(b []byte) []byte {
	b = append(b, `{"client_id":"`...)
	id, _ := m.ClientID.MarshalText() // never fails
	b = append(append(b, id...), '"')
	if !m.Token.IsZero() {
		b = appendToken(append(b, `,"token":`...), m.Token)
	}
	if m.Agent != "" {
		b = appendString(append(b, `,"agent":`...), m.Agent)
	}
	return append(b, '}')
}

func (m *Welcome) reset()                   { *m = Welcome{} }
func (m *Welcome) fields() ([]string, uint) { return welcomeFields, 0b11 }
func (m *Welcome) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeWelcome}
	switch string(name) {
	case "token":
		m.Token = d.token(raw)
		return 0, d.err
	case "expires_at":
		m.ExpiresAt = d.time("expires_at", raw)
		return 1, d.err
	case "heartbeat_ms":
		m.Heartbeat = d.millis("heartbeat_ms", raw)
		return 2, d.err
	case "idle_timeout_ms":
		m.IdleTimeout = d.millis("idle_timeout_ms", raw)
		return 3, d.err
	case "max_frame":
		m.MaxFrame = int(d.uint("max_frame", raw, MaxPayload, "a number of bytes"))
		return 4, d.err
	case "session":
		m.Session = d.string("session", raw, MaxPayload)
		return 5, d.err
	}
	return unknownField, nil
}
func (m *Welcome) appendJSON(b []byte) []byte {
	b = appendToken(append(b, `{"token":`...), m.Token)
	b = appendTime(append(b, `,"expires_at":`...), m.ExpiresAt)
	b = appendMillis(append(b, `,"heartbeat_ms":`...), m.Heartbeat)
	b = appendMillis(append(b, `,"idle_timeout_ms":`...), m.IdleTimeout)
	b = strconv.AppendInt(append(b, `,"max_frame":`...), int64(m.MaxFrame), 10)
	b = appendString(append(b, `,"session":`...), m.Session)
	return append(b, '}')
}

func (m *Request) reset()                   { *m = Request{} }
func (m *Request) fields() ([]string, uint) { return requestFields, 0b1101 }

func (m *Request) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeRequest}
	switch string(name) {
	case "id":
		m.ID = d.uint32("id", raw)
		return 0, d.err
	case "token":
		m.Token = d.token(raw)
		return 1, d.err
	case "service":
		m.Service = d.service(raw)
		return 2, d.err
	case "body":
		m.Body = raw
		return 3, nil
	}
	return unknownField, nil
}
func (m *Request) appendJSON(b []byte) []byte {
	b = strconv.AppendUint(append(b, `{"id":`...), uint64(m.ID), 10)
	if !m.Token.IsZero() {
		b = appendToken(append(b, `,"token":`...), m.Token)
	}
	b = appendString(append(b, `,"service":`...), m.Service)
	b = appendBody(append(b, `,"body":`...), m.Body)
	return append(b, '}')
}

func (m *Response) reset()                   { *m = Response{} }
func (m *Response) fields() ([]string, uint) { return responseFields, 0b11 }

func (m *Response) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeResponse}
	switch string(name) {
	case "id":
		m.ID = d.uint32("id", raw)
		return 0, d.err
	case "body":
		m.Body = raw
		return 1, nil
	}
	return unknownField, nil
}
func (m *Response) appendJSON(b []byte) []byte {
	b = strconv.AppendUint(append(b, `{"id":`...), uint64(m.ID), 10)
	b = appendBody(append(b, `,"body":`...), m.Body)
	return append(b, '}')
}

func (m *Heartbeat) reset()                   { *m = Heartbeat{} }
func (m *Heartbeat) fields() ([]string, uint) { return heartbeatFields, 0 }
func (m *Heartbeat) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeHeartbeat}
	if string(name) == "token" {
		m.Token = d.token(raw)
		return 0, d.err
	}
	return unknownField, nil
}
func (m *Heartbeat) appendJSON(b []byte) []byte {
	if m.Token.IsZero() {
		return append(b, `{}`...)
	}
	return append(appendToken(append(b, `{"token":`...), m.Token), '}')
}

func (m *HeartbeatAck) reset() { *m = HeartbeatAck{} }
func (m *HeartbeatAck) fields() ([]string, uint) {
	if m.Token.IsZero() && m.ExpiresAt.IsZero() {
		return ackFields, 0
	}
	return ackFields, 0b11
}
func (m *HeartbeatAck) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeHeartbeatAck}
	switch string(name) {
	case "token":
		m.Token = d.token(raw)
		return 0, d.err
	case "expires_at":
		m.ExpiresAt = d.time("expires_at", raw)
		return 1, d.err
	}
	return unknownField, nil
}
func (m *HeartbeatAck) appendJSON(b []byte) []byte {
	if m.Token.IsZero() {
		return append(b, `{}`...)
	}
	b = appendToken(append(b, `{"token":`...), m.Token)
	b = appendTime(append(b, `,"expires_at":`...), m.ExpiresAt)
	return append(b, '}')
}

func (m *Push) reset()                   { *m = Push{} }
func (m *Push) fields() ([]string, uint) { return pushFields, 0b111 }
func (m *Push) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypePush}
	switch string(name) {
	case "id":
		m.ID = d.uint32("id", raw)
		return 0, d.err
	case "service":
		m.Service = d.service(raw)
		return 1, d.err
	case "body":
		m.Body = raw
		return 2, nil
	}
	return unknownField, nil
}
func (m *Push) appendJSON(b []byte) []byte {
	b = strconv.AppendUint(append(b, `{"id":`...), uint64(m.ID), 10)
	b = appendString(append(b, `,"service":`...), m.Service)
	b = appendBody(append(b, `,"body":`...), m.Body)
	return append(b, '}')
}

func (m *PushAck) reset()                   { *m = PushAck{} }
func (m *PushAck) fields() ([]string, uint) { return pushAckFields, 0b1 }
func (m *PushAck) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypePushAck}
	if string(name) == "id" {
		m.ID = d.uint32("id", raw)
		return 0, d.err
	}
	return unknownField, nil
}
func (m *PushAck) appendJSON(b []byte) []byte {
	return append(strconv.AppendUint(append(b, `{"id":`...), uint64(m.ID), 10), '}')
}

func (e *Error) reset()                   { *e = Error{} }
func (e *Error) fields() ([]string, uint) { return errorFields, 0b1 }
func (e *Error) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeError}
	switch string(name) {
	case "code":
		e.Code = Code(d.string("code", raw, MaxPayload))
		return 0, d.err
	case "message":
		e.Message = d.string("message", raw, MaxPayload)
		return 1, d.err
	case "id":
		e.ID, e.HasID = d.uint32("id", raw), true
		return 2, d.err
	case "retry_after_ms":
		e.RetryAfter = d.millis("retry_after_ms", raw)
		return 3, d.err
	case "close":
		e.Close = d.bool("close", raw)
		return 4, d.err
	}
	return unknownField, nil
}
func (e *Error) appendJSON(b []byte) []byte {
	b = appendString(append(b, `{"code":`...), string(e.Code))
	b = appendString(append(b, `,"message":`...), e.Message)
	if e.HasID {
		b = strconv.AppendUint(append(b, `,"id":`...), uint64(e.ID), 10)
	}
	if e.RetryAfter > 0 {
		b = appendMillis(append(b, `,"retry_after_ms":`...), e.RetryAfter)
	}
	return append(strconv.AppendBool(append(b, `,"close":`...), e.Close), '}')
}

func (m *Goaway) reset()                   { *m = Goaway{} }
func (m *Goaway) fields() ([]string, uint) { return goawayFields, 0 }
func (m *Goaway) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeGoaway}
	switch string(name) {
	case "reason":
		m.Reason = d.string("reason", raw, MaxPayload)
		return 0, d.err
	case "after_ms":
		m.After = d.millis("after_ms", raw)
		return 1, d.err
	}
	return unknownField, nil
}
func (m *Goaway) appendJSON(b []byte) []byte {
	b = appendString(append(b, `{"reason":`...), m.Reason)
	return append(appendMillis(append(b, `,"after_ms":`...), m.After), '}')
}

func (m *Challenge) reset()                   { *m = Challenge{} }
func (m *Challenge) fields() ([]string, uint) { return challengeFields, 0b1 }
func (m *Challenge) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeChallenge}
	if string(name) == "nonce" {
		m.Nonce = d.bytes32("nonce", raw)
		return 0, d.err
	}
	return unknownField, nil
}
func (m *Challenge) appendJSON(b []byte) []byte {
	return append(appendBytes32(append(b, `{"nonce":`...), m.Nonce), '}')
}

func (m *Proof) reset()                   { *m = Proof{} }
func (m *Proof) fields() ([]string, uint) { return proofFields, 0b1 }
func (m *Proof) setJSON(name, raw []byte) (int, error) {
	d := decoder{in: TypeProof}
	if string(name) == "proof" {
		m.Proof = d.bytes32("proof", raw)
		return 0, d.err
	}
	return unknownField, nil
}
func (m *Proof) appendJSON(b []byte) []byte {
	return append(appendBytes32(append(b, `{"proof":`...), m.Proof), '}')
}

func (m *Bye) reset()                           {}
func (m *Bye) fields() ([]string, uint)         { return nil, 0 }
func (m *Bye) setJSON(_, _ []byte) (int, error) { return unknownField, nil }
func (m *Bye) appendJSON(b []byte) []byte       { return append(b, `{}`...) }
