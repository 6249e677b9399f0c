package gateway

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/bucket"
	"github.com/goshield/goshield/internal/wheel"
	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/backend"
)

// session is one device's connection, from the first frame to the end.
//
// Three kinds of goroutines touch it: the reader, which takes one frame at a time from the
// connection through step; the flusher, which is there only while something
// is to be written; and everybody else (backends' links, the timer wheel, the
// push API, drain), who only ever hold mu for a moment. Nothing about the session
// lives on the reader's stack between two frames, so that a reader may leave and another one
// come when there is something to read.
//
// Lock order: mu, then the timer wheel's and the table's own locks. Nothing that may block, and no call into the
// router, is done under mu.
//
// A fault of ours (a panic) costs one session: what its own goroutines run, and what others' call, begins with
// recoverFault, and mu is given up by defer wherever a fault is possible under it.
type session struct {
	// Static.
	srv     *Server
	sock    *socket
	conn    transport
	spot    parkable    // conn; nil: it is never parked
	other   translating // conn; nil: the device speaks this protocol
	serial  uint64      // names the session
	flushFn func()      // flush, made once: starting a flusher then allocates nothing

	// Written by the reader, under mu, before it enters the table; static after that.
	client wire.ClientID
	epoch  int64
	told   *settings // of heartbeat, idle timeout and longest frame: what WELCOME said

	// Owned by the reader.
	in        *wire.Reader
	stage     stage
	nonce     *[32]byte // of the CHALLENGE, in stageProof
	frames    bucket.Bucket
	bytes     bucket.Bucket
	rejecting int64 // since when frames were rejected and none was taken; 0: the last one was taken
	rejected  int   // how many, since then

	// Written by reader or flusher, looked at by the timer wheel. Times are the wheel's; 0: none.
	lastFrame  atomic.Int64 // last complete frame
	lastBeat   atomic.Int64 // last HEARTBEAT
	frameStart atomic.Int64 // first byte of a frame, or of a TLS record, that is not complete
	writeStart atomic.Int64 // begin of a write that goes on
	within     atomic.Bool  // what is read next is the rest of a frame, or of the message or packet that makes one

	timer wheel.Timer // guarded by the wheel

	mu       sync.Mutex
	changed  sync.Cond // the reader waits here; see stopReading
	state    state
	reading  bool          // there is a reader
	readGone chan struct{} // closed when the reader is gone; nil: nobody waits
	// Parking; see park.go. readerCame is when the reader came, or found that it has to stay.
	readerCame  int64
	interrupted bool // the reader was asked to leave
	parked      bool // it has left, and the lot has the connection

	version  byte  // of the device's frames; 1 until the first
	json     bool  // bodies are JSON
	armed    int64 // when the timer fires; 0: not set
	helloBy  int64 // deadline of HELLO or PROOF; 0: none
	closeBy  int64 // end of the lingering close
	stopped  int64 // since when the gateway has stopped reading; 0: it reads
	tokens   tokens
	out      outbound
	inflight map[uint32]inflight // by the request's id
	pushes   []pendingPush
	pushID   uint32
	goneAt   int64 // GOAWAY was sent: from then on requests are refused; 0: it was not
	leaveBy  int64 // GOAWAY was sent: when the gateway closes
	leaving  bool  // it closes as soon as nothing is in flight
	finishBy int64 // and at this time whatever is in flight
	lost     bool  // a newer session has the device: there is nothing to release
	response wire.Response
}

// stage is what the device may send; the reader's view.
type stage uint8

const (
	stageHello stage = iota // HELLO
	stageProof              // PROOF
	stageOpen               // all that comes after WELCOME
)

// state is how far the connection's life has come; everybody's view.
type state uint8

const (
	stateOpening state = iota // before WELCOME
	stateOpen
	stateClosing // the last words are being written, what the device sends is thrown away
	stateClosed
)

// inflight is a request that a backend has not answered yet.
type inflight struct {
	handle  backend.Handle
	started int64
	metrics *serviceMetrics
}

// startSession begins a session on a connection and returns at once. The
// session ends by itself; Server.work counts its goroutines.
func (s *Server) startSession(sock *socket, conn transport) {
	now := s.now()
	ses := &session{srv: s, sock: sock, conn: conn, spot: s.spotFor(conn), serial: s.nextSerial(), version: wire.Version1, reading: true}
	ses.flushFn = ses.flush
	ses.changed.L = &ses.mu
	ses.in = wire.NewReader((*inbound)(ses), s.settings.Load().doc.Frame.MaxBytes)
	ses.lastFrame.Store(now)
	sock.ses = ses
	if a, ok := conn.(attended); ok {
		a.attend(ses)
	}
	ses.other, _ = conn.(translating)
	if !s.begin() {
		_ = sock.Close() // the gateway has ended
		return
	}
	ses.mu.Lock()
	ses.helloBy = now + int64(s.timings.hello)
	ses.arm(ses.helloBy)
	ses.mu.Unlock()
	s.work.Add(1) // besides the session, which counts until it is closed
	go ses.read()
}

// nextSerial is unique in this process, and most likely among all of this node's.
func (s *Server) nextSerial() uint64 { return s.bootID<<32 | uint64(s.serial.Add(1)) }

// name is how logs on both sides call the session.
func (s *session) name() string { return strconv.FormatUint(s.serial, 16) }

// owner is the session's name in the registry.
func (s *session) owner() string { return s.srv.cfg.Node + "/" + s.name() }

func (s *session) log() *zap.Logger {
	return s.srv.log.With(zap.String("session", s.name()), zap.Stringer("remote", s.sock.remote))
}

// read is the reader: it takes frames until the session closes, and then throws away what still comes.
// It ends when the session is welcomed or parked, and another one comes, or when the connection is closed, at the latest.
func (s *session) read() {
	defer s.srv.work.Done()
	followed := false
	defer func() {
		if !followed {
			s.readerLeaves()
		}
	}()
	defer s.recoverFault()
	for {
		opening := s.stage != stageOpen
		switch s.step() {
		case turnNext:
			if opening && s.stage == stageOpen {
				followed = true
				s.srv.work.Add(1)
				go s.read() // on a stack that has not grown with the opening
				return
			}
			continue
		case turnParked:
			followed = true
			return
		case turnOver:
		}
		s.discard()
		return
	}
}

// turn is how the reader goes on.
type turn uint8

const (
	turnNext   turn = iota // there may be another frame
	turnParked             // the session is another reader's
	turnOver               // the session takes no more frames
)

// step takes one frame.
func (s *session) step() turn {
	if !s.mayRead() {
		return turnOver
	}
	f, err := s.in.Next()
	if err != nil && s.spot != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		if s.park() {
			return turnParked
		}
		return turnNext
	}
	s.frameStart.Store(0)
	if err != nil {
		s.readFailed(err)
		return turnOver
	}
	s.lastFrame.Store(s.srv.now())
	s.srv.metrics.framesIn[f.Type].Inc()
	if (s.stage == stageOpen && s.handle(f)) || (s.stage != stageOpen && s.handleOpening(f)) {
		return turnNext
	}
	return turnOver
}

// handle deals with a frame of an open session. It reports whether the session goes on.
func (s *session) handle(f wire.Frame) bool {
	switch f.Type {
	case wire.TypeRequest:
		return s.handleRequest(f)
	case wire.TypeHeartbeat:
		return s.handleHeartbeat(f)
	case wire.TypePushAck:
		return s.handlePushAck(f)
	case wire.TypeBye:
		s.end(closedBye, nil)
		return false
	}
	return s.refuse(wire.Errorf(wire.CodeBadFrame, "%s is out of order", f.Type))
}

// refuse ends the session with an error. It returns false.
func (s *session) refuse(e *wire.Error) bool {
	s.end(string(e.Code), e)
	return false
}

// readFailed ends the session after an error of the reader.
func (s *session) readFailed(err error) {
	var refused *wire.Error
	switch {
	case errors.As(err, &refused):
		s.refuse(refused)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		s.deviceGone(closedEOF)
	default:
		s.deviceGone(closedReset)
	}
}

// deviceGone ends the session of a device that sends nothing more. Last words that are under way may
// still arrive, and their flusher closes the connection.
func (s *session) deviceGone(reason string) {
	s.mu.Lock()
	closing := s.state == stateClosing
	s.mu.Unlock()
	if !closing {
		s.abort(reason)
	}
}

// recoverFault turns a panic of ours into an ERROR for this one device. It is deferred where mu is not held.
func (s *session) recoverFault() {
	fault := recover()
	if fault == nil {
		return
	}
	s.refuse(wire.Errorf(wire.CodeInternal, "a fault of the gateway, logged as %s", s.logFault(fault)))
}

// recoverSilently closes the connection after a panic of ours, where nothing can be said any more.
func (s *session) recoverSilently() {
	if fault := recover(); fault != nil {
		s.logFault(fault)
		s.abort(string(wire.CodeInternal))
	}
}

func (s *session) logFault(fault any) (id string) {
	id = strconv.FormatUint(rand.Uint64(), 16)
	s.log().Error("fault in a session", zap.String("fault_id", id), zap.Any("fault", fault), zap.ByteString("stack", debug.Stack()))
	return id
}

// discard reads on while the last words are under way: bytes left unread would turn the close
// into a reset, which may overtake them. It ends when the connection is closed, or
// after so many bytes.
func (s *session) discard() {
	from := io.Reader(s.conn)
	if s.other != nil {
		from = s.other.raw()
	}
	buf := make([]byte, 1<<10)
	for left := discardMax; left > 0; {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		left -= n
	}
}

// discardMax is how many bytes are thrown away in a lingering close.
const discardMax = 256 << 10

func (s *session) readerLeaves() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading = false
	if s.readGone != nil {
		close(s.readGone)
	}
}

// inbound is the session as the wire.Reader's source: it says which frames do not come whole.
type inbound session

// Read implements io.Reader.
func (in *inbound) Read(p []byte) (int, error) {
	s := (*session)(in)
	s.within.Store(s.in.Buffered() > 0)
	return s.conn.Read(p)
}

// end closes the session after its last words: e, if not nil, and whatever was queued before. The first
// call counts. It does not block.
func (s *session) end(reason string, e *wire.Error) {
	defer s.recoverSilently() // a fault may be in the way of last words, too
	if over, first := s.lastWords(e); first {
		s.wrapUp(over, reason)
	}
}

// lastWords queues them and moves on to closing; false if that was done before.
func (s *session) lastWords(e *wire.Error) (over ended, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state >= stateClosing {
		return ended{}, false
	}
	s.closeBy = s.srv.now() + int64(s.srv.timings.lastWords)
	s.arm(s.closeBy)
	if e != nil {
		s.send(e)
	}
	over = s.leaveState(stateClosing)
	s.startFlush() // it closes the connection when all is written
	return over, true
}

// abort closes the connection at once: the device is gone, or does not read. It does not block.
func (s *session) abort(reason string) {
	s.mu.Lock()
	was := s.state
	if was == stateClosed {
		s.mu.Unlock()
		return
	}
	over := s.leaveState(stateClosed)
	s.srv.wheel.Stop(&s.timer)
	s.mu.Unlock()
	defer s.srv.work.Done()
	if s.spot != nil {
		s.srv.lot.Leave(s.spot.space())
	}
	_ = s.conn.Close() // nobody is left to tell
	if was != stateClosing {
		s.wrapUp(over, reason)
	}
}

// ended is what a session leaves behind when it closes.
type ended struct {
	was      state
	client   wire.ClientID
	epoch    int64
	inflight map[uint32]inflight
	pushes   []pendingPush
	release  bool
}

// leaveState moves on to closing or closed and takes out what others wait for. mu is held.
func (s *session) leaveState(to state) ended {
	over := ended{was: s.state, client: s.client, epoch: s.epoch, inflight: s.inflight, pushes: s.pushes, release: s.epoch != 0 && !s.lost}
	switch {
	case s.parked && to == stateClosing:
		s.unpark() // what the device still sends has to be thrown away
	case s.parked:
		s.leaveLot()
	case s.interrupted && to == stateClosing:
		s.stay() // for the same
	}
	s.state = to
	s.inflight, s.pushes = nil, nil
	s.changed.Broadcast()
	return over
}

// wrapUp tells everybody who has to know that the session is over.
func (s *session) wrapUp(over ended, reason string) {
	s.srv.table.remove(over.client, s)
	for _, r := range over.inflight {
		r.handle.Cancel()
	}
	for _, p := range over.pushes {
		s.pushEnded(p, pushLost)
	}
	if over.release {
		s.srv.releases.add(over.client, over.epoch)
	}
	if over.was == stateOpening {
		s.srv.metrics.handshaking.Dec()
	} else {
		s.srv.metrics.active.Dec()
	}
	s.srv.metrics.closed.WithLabelValues(reason).Inc()
	if ce := s.srv.log.Check(zap.DebugLevel, "session ended"); ce != nil {
		ce.Write(zap.String("session", s.name()), zap.String("reason", reason), zap.Stringer("client_id", over.client))
	}
}
