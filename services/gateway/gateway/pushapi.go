package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/internal/secret"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

// The push API (docs/PROTOCOL.md §4).

const (
	pathDevices = "/v1/devices"
	maxPushWait = 25 * time.Second
	maxPushBody = wire.MaxPayload + 4<<10
	maxHopBody  = wire.MaxPayload/3*4 + 4<<10 // base64
	devicesPage = 100
)

// Codes of problems that are this API's own.
const (
	codeUnauthorized wire.Code = "unauthorized"
	codeBadRequest   wire.Code = "bad_request"
	codeNotConnected wire.Code = "not_connected"
	codeQueueFull    wire.Code = "queue_full"
	codeNoAck        wire.Code = "no_ack"
	codeRefused      wire.Code = "refused"
	codeUnavailable  wire.Code = "unavailable"
)

// pushMessage is the body of POST …/messages. Body is JSON and handed on byte for byte; among gateways it
// is any bytes, which travel as Bytes where they are no JSON.
type pushMessage struct {
	Service string          `json:"service"`
	Body    json.RawMessage `json:"body"`
	Bytes   []byte          `json:"body_base64"`
	WaitMS  int64           `json:"wait_ms,omitempty"`
}

// appendJSON adds the message as JSON. encoding/json would reformat the body.
func (m *pushMessage) appendJSON(dst []byte) []byte {
	service, err := json.Marshal(m.Service)
	if err != nil {
		panic("gateway: a string always marshals: " + err.Error())
	}
	dst = append(append(dst, `{"service":`...), service...)
	if b := m.Body; len(b) > 0 && b[0] > ' ' && b[len(b)-1] > ' ' && wire.ValidJSON(b) {
		dst = append(append(dst, `,"body":`...), b...)
	} else { // white space around it would be lost: to protobuf it is none
		dst = append(base64.StdEncoding.AppendEncode(append(dst, `,"body_base64":"`...), b), '"')
	}
	return append(strconv.AppendInt(append(dst, `,"wait_ms":`...), m.WaitMS, 10), '}')
}

// whereabouts is the answer of GET …/{client_id}, and an entry of the list.
type whereabouts struct {
	ClientID wire.ClientID `json:"client_id"`
	Node     string        `json:"node"`
	Session  string        `json:"session"`
	Epoch    int64         `json:"epoch"`
}

// outcomeStatus is the one place where outcomes become HTTP statuses, and back.
var outcomeStatus = map[pushOutcome]int{
	pushQueued:       http.StatusAccepted,
	pushAcked:        http.StatusOK,
	pushNotConnected: http.StatusNotFound,
	pushQueueFull:    http.StatusConflict,
	pushNoAck:        http.StatusGatewayTimeout,
	pushRefused:      http.StatusBadRequest,
	pushUnavailable:  http.StatusServiceUnavailable,
}

var outcomeCode = map[pushOutcome]wire.Code{
	pushNotConnected: codeNotConnected,
	pushQueueFull:    codeQueueFull,
	pushNoAck:        codeNoAck,
	pushRefused:      codeRefused,
	pushUnavailable:  codeUnavailable,
}

// pushHandler serves the push API to those that know the secret.
func (s *Server) pushHandler(sec *secret.Secret) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathDevices+"/{client_id}/messages", s.servePush)
	mux.HandleFunc("DELETE "+pathDevices+"/{client_id}/session", s.serveKick)
	mux.HandleFunc("GET "+pathDevices+"/{client_id}", s.serveDevice)
	mux.HandleFunc("GET "+pathDevices, s.serveDevices)
	return authorized(sec, mux)
}

// authorized lets only those through that present the secret.
func authorized(sec *secret.Secret, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !sec.MatchesBearer(r.Header.Get("Authorization")) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeProblem(w, http.StatusUnauthorized, codeUnauthorized, "a bearer secret is needed")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeProblem(w http.ResponseWriter, status int, code wire.Code, title string) {
	w.Header().Set("Content-Type", authapi.ProblemType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(authapi.Problem{Title: title, Status: status, Code: code}) // whoever asked may be gone
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // whoever asked may be gone
}

// pathClient is the {client_id} of the path; it answers if there is none.
func pathClient(w http.ResponseWriter, r *http.Request) (wire.ClientID, bool) {
	id, err := wire.ParseClientID(r.PathValue("client_id"))
	if err != nil {
		writeProblem(w, http.StatusBadRequest, codeBadRequest, err.Error())
	}
	return id, err == nil
}

// readJSON reads a body of at most limit bytes; it answers if there is none.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) bool {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		writeProblem(w, http.StatusBadRequest, codeBadRequest, fmt.Sprintf("the body is not the JSON that is wanted, of at most %d bytes", limit))
	}
	return err == nil
}

func (s *Server) servePush(w http.ResponseWriter, r *http.Request) {
	id, ok := pathClient(w, r)
	var m pushMessage
	forwarded, limit := r.Header.Get(headerForwarded) != "", int64(maxPushBody)
	if forwarded {
		limit = maxHopBody
	}
	if !ok || !readJSON(w, r, limit, &m) {
		return
	}
	if forwarded && m.Body == nil {
		m.Body = m.Bytes
	}
	if m.Service == "" || len(m.Service) > wire.MaxServiceName || m.Body == nil || m.WaitMS < 0 || m.WaitMS > maxPushWait.Milliseconds() {
		writeProblem(w, http.StatusBadRequest, codeBadRequest, fmt.Sprintf("service and body are needed; wait_ms is at most %d", maxPushWait.Milliseconds()))
		return
	}
	outcome := s.pushAndWait(r.Context(), id, m)
	switch {
	case outcome != pushNotConnected:
	case forwarded || s.peers == nil:
		s.countPush(outcome)
	case !s.peers.take():
		outcome = pushQueueFull
		s.countPush(outcome)
	default:
		outcome = s.pushElsewhere(r.Context(), id, m)
		s.peers.give()
	}
	status := outcomeStatus[outcome]
	if code, failed := outcomeCode[outcome]; failed {
		writeProblem(w, status, code, "the message was not delivered")
		return
	}
	writeJSON(w, status, map[string]pushOutcome{"result": outcome})
}

// pushAndWait pushes to a device of this gateway, and waits for its acknowledgement if the message says so.
func (s *Server) pushAndWait(ctx context.Context, id wire.ClientID, m pushMessage) pushOutcome {
	if m.WaitMS == 0 {
		return s.pushLocal(id, m.Service, m.Body, s.timings.pushAck, nil)
	}
	result := make(chan pushOutcome, 1)
	outcome := s.pushLocal(id, m.Service, m.Body, time.Duration(m.WaitMS)*time.Millisecond, func(o pushOutcome) { result <- o })
	if outcome != pushQueued {
		return outcome
	}
	select {
	case outcome = <-result:
		return outcome
	case <-ctx.Done():
		return pushNoAck
	}
}

func (s *Server) serveKick(w http.ResponseWriter, r *http.Request) {
	id, ok := pathClient(w, r)
	if !ok {
		return
	}
	var epoch int64
	if reason := wire.Code(r.URL.Query().Get("reason")); reason == wire.CodeTakenOver {
		var err error
		if epoch, err = strconv.ParseInt(r.URL.Query().Get("epoch"), 10, 64); err != nil || epoch <= 0 {
			writeProblem(w, http.StatusBadRequest, codeBadRequest, "a takeover needs the new session's epoch")
			return
		}
	} else if reason != "" && reason != wire.CodeKicked {
		writeProblem(w, http.StatusBadRequest, codeBadRequest, "reason must be kicked or taken_over")
		return
	}
	if s.endLocal(id, epoch) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	err := registry.ErrNotConnected
	if epoch == 0 && r.Header.Get(headerForwarded) == "" && s.peers != nil {
		err = s.kickElsewhere(r.Context(), id)
	}
	if err != nil {
		writeNowhere(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// writeNowhere answers for a device that was not found: it is not connected, or nobody knows.
func writeNowhere(w http.ResponseWriter, err error) {
	if errors.Is(err, registry.ErrNotConnected) {
		writeProblem(w, http.StatusNotFound, codeNotConnected, "the device is not connected")
		return
	}
	writeProblem(w, http.StatusServiceUnavailable, codeUnavailable, "the gateway that has the device cannot be found or asked just now")
}

// endLocal kicks a device of this gateway, or, with an epoch, ends its session if that is
// older.
func (s *Server) endLocal(id wire.ClientID, epoch int64) bool {
	if epoch != 0 {
		ses := s.table.evict(id, epoch, s.now())
		if ses != nil {
			ses.takenOver()
		}
		if s.unsure.take(id, s.now()) {
			s.evictEverywhere(id, epoch)
		}
		return ses != nil
	}
	ses := s.table.find(id)
	if ses != nil {
		ses.refuse(wire.Errorf(wire.CodeKicked, "ended by an administrator"))
	}
	return ses != nil
}

// kickElsewhere kicks a device of another gateway; registry.ErrNotConnected if none has it.
func (s *Server) kickElsewhere(ctx context.Context, id wire.ClientID) error {
	if !s.peers.take() {
		return errPeersBusy
	}
	defer s.peers.give()
	node, err := s.locate(ctx, id)
	if err != nil {
		return err
	}
	switch status, err := s.peers.endSession(ctx, node, id, 0); {
	case gone(err), status == http.StatusNotFound:
		return registry.ErrNotConnected // that gateway has died, or the device has gone
	case err != nil:
		return err
	case status != http.StatusNoContent:
		return fmt.Errorf("the other gateway answered %d", status)
	}
	return nil
}

func (s *Server) serveDevice(w http.ResponseWriter, r *http.Request) {
	id, ok := pathClient(w, r)
	if !ok {
		return
	}
	if ses := s.table.find(id); ses != nil {
		writeJSON(w, http.StatusOK, ses.whereabouts())
		return
	}
	owner, err := s.registry.Locate(r.Context(), id)
	if err == nil && owner.Node != s.cfg.Node {
		_, err = s.registry.Lookup(r.Context(), owner.Node)
	} else if err == nil {
		err = registry.ErrNotConnected // it was here, and is no more
	}
	if err != nil {
		writeNowhere(w, err)
		return
	}
	writeJSON(w, http.StatusOK, whereabouts{ClientID: id, Node: owner.Node, Session: owner.Session, Epoch: owner.Epoch})
}

func (s *session) whereabouts() whereabouts {
	return whereabouts{ClientID: s.client, Node: s.srv.cfg.Node, Session: s.name(), Epoch: s.epoch}
}
