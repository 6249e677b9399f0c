package relay_test

// What the two ends of a connection of the soak say, and what each must hear.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// How a conversation of the random traffic ends.
const (
	clientEndsFirst   = iota // half-close, then the upstream sends on and closes
	upstreamEndsFirst        // the other way round
	bothEnd                  // each when it has sent all
	clientResets
	upstreamResets
	endings
)

// script is what both ends of a conversation do. The client sends it first.
type script struct {
	Seed     uint64
	Up, Down uint32 // bytes
	Ending   uint8
	Stalls   uint8 // how often each reader pauses; the client's receive buffer is small then
}

func randomScript() script {
	size := func() uint32 { return uint32(rand.Uint64N(1 << (1 + rand.IntN(23)))) }
	return script{
		Seed: rand.Uint64(), Up: size(), Down: size(),
		Ending: uint8(rand.IntN(endings)), Stalls: uint8(rand.IntN(3) * rand.IntN(3)),
	}
}

var errWrongByte = errors.New("wrong byte")

// talkTime is how long a conversation may take, at the most, on a slow machine.
const talkTime = 5 * time.Minute

// converse plays the client's part of a script.
func converse(addr string, s script) error {
	var d net.Dialer
	if s.Stalls > 0 { // small from the start: a window that shrinks below one segment costs the sender 200 ms each
		d.Control = func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 32<<10)
			})
		}
	}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(talkTime))
	if err := binary.Write(c, binary.BigEndian, s); err != nil {
		return err
	}
	return play(c, s, true)
}

// play is either end of a conversation after the script has been sent: it sends its
// stream and checks the other's, both at once.
func play(c *net.TCPConn, s script, isClient bool) error {
	sending, receiving := s.Up, s.Down
	seedOut, seedIn := s.Seed, s.Seed+1
	resets, isReset, endsLast := s.Ending == clientResets, s.Ending == upstreamResets, s.Ending == upstreamEndsFirst
	if !isClient {
		sending, receiving = receiving, sending
		seedOut, seedIn = seedIn, seedOut
		resets, isReset, endsLast = isReset, resets, s.Ending == clientEndsFirst
	}
	ended := make(chan struct{}) // the other's end was received
	var sender sync.WaitGroup
	var sendErr error
	sender.Go(func() {
		if sendErr = sendPieces(c, seedOut, sending, s.Seed); sendErr != nil {
			return
		}
		switch {
		case resets:
			_ = c.SetLinger(0)
			_ = c.Close()
		case endsLast:
			<-ended
			sendErr = c.CloseWrite()
		default:
			sendErr = c.CloseWrite()
		}
	})
	n, err := receivePieces(c, seedIn, receiving, s)
	close(ended)
	if err != nil && !errors.Is(err, io.EOF) {
		_ = c.SetDeadline(time.Unix(1, 0)) // do not go on sending
	}
	sender.Wait()
	switch {
	case errors.Is(err, errWrongByte):
		return err
	case resets:
		return nil // what it then sees is its own doing
	case isReset:
		if errors.Is(err, io.EOF) && sendErr == nil { // else it was the write that the kernel told
			return fmt.Errorf("a reset came as an end after %d of %d bytes", n, receiving)
		}
		return nil
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("received %d of %d bytes: %w", n, receiving, err)
	case n != receiving:
		return fmt.Errorf("ended after %d of %d bytes", n, receiving)
	case sendErr != nil:
		return fmt.Errorf("send: %w", sendErr)
	}
	return nil
}

// sendPieces sends n bytes of a stream in random pieces.
func sendPieces(c *net.TCPConn, seed uint64, n uint32, shape uint64) error {
	r := rand.New(rand.NewPCG(shape, seed))
	data := stream(seed)
	buf := make([]byte, 128<<10)
	for n > 0 {
		piece := buf[:min(uint64(n), 1+r.Uint64N(1<<r.IntN(18)))]
		_, _ = io.ReadFull(data, piece)
		if _, err := c.Write(piece); err != nil {
			return err
		}
		n -= uint32(len(piece))
	}
	return nil
}

// receivePieces reads to the end, checks every byte, and pauses as often as the
// script says. The error is never nil: io.EOF is the good one.
func receivePieces(c *net.TCPConn, seed uint64, most uint32, s script) (n uint32, err error) {
	r := rand.New(rand.NewPCG(s.Seed, seed))
	want := stream(seed)
	buf, expected := make([]byte, 64<<10), make([]byte, 64<<10)
	stalls := int(s.Stalls)
	for {
		k, err := c.Read(buf[:1+r.IntN(len(buf))])
		_, _ = io.ReadFull(want, expected[:k])
		if !bytes.Equal(buf[:k], expected[:k]) || n+uint32(k) > most {
			return n, fmt.Errorf("%w: among %d after %d of %d", errWrongByte, k, n, most)
		}
		n += uint32(k)
		if err != nil {
			return n, err
		}
		if stalls > 0 && r.IntN(8) == 0 {
			stalls--
			time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
		}
	}
}

// stream is what an end sends: the same from the same seed.
func stream(seed uint64) io.Reader {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}
