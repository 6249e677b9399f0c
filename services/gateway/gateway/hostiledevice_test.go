package gateway

// The devices of TestHostileBackends: each knows what every answer must be.

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/goshield/goshield/sdk/wire"
)

// ask is one device from its first request to its last answer, if it could be dialled.
func (o *ordeal) ask(conn net.Conn, err error, device int) error {
	if err == nil {
		err = errors.Join(o.torment(conn, device), conn.Close())
	}
	if err != nil {
		return fmt.Errorf("device %d: %w", device, err)
	}
	return nil
}

// refusedPause is what a device waits after a request that no backend could take. Refusals cost next to nothing: without it most of
// all requests would be spent on the moments in which a backend is down.
const refusedPause = 200 * time.Millisecond

// torment is one device: it keeps some requests in flight until all are answered. It
// fails if its connection ends, or an answer is not what it must be.
func (o *ordeal) torment(conn net.Conn, device int) error {
	const inFlight = 4
	id := hostileID(device)
	in := wire.NewReader(conn, wire.MaxPayload)
	frame, err := wire.Append(nil, wire.Version1, &wire.Hello{ClientID: id})
	if err != nil {
		return err
	}
	f, err := exchange(conn, in, frame)
	if err != nil {
		return err
	}
	var welcome wire.Welcome
	if err := expect(f, &welcome); err != nil {
		return err
	}
	open := map[uint32]int{}
	for sent, done := 0, 0; done < o.each; done++ {
		frame = frame[:0]
		for ; sent < o.each && len(open) < inFlight; sent++ {
			number := uint32(sent + 1)
			open[number] = sent
			frame, err = wire.Append(frame, wire.Version1, &wire.Request{ID: number, Token: welcome.Token, Service: hostileService(sent), Body: hostileBody(device, sent)})
			if err != nil {
				return err
			}
		}
		if f, err = exchange(conn, in, frame); err != nil {
			return fmt.Errorf("after %d answers: %w", done, err)
		}
		code, err := o.judge(f, id, device, open)
		if err != nil {
			return err
		}
		if code == wire.CodeBackendUnavailable {
			time.Sleep(refusedPause)
		}
		o.ended.Add(1)
	}
	return nil
}

// exchange writes what there is to write, and reads a frame.
func exchange(conn net.Conn, in *wire.Reader, frame []byte) (wire.Frame, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return wire.Frame{}, err
	}
	if len(frame) > 0 {
		if _, err := conn.Write(frame); err != nil {
			return wire.Frame{}, err
		}
	}
	return in.Next()
}

func expect(f wire.Frame, m wire.Message) error {
	if f.Type != m.Type() {
		return fmt.Errorf("got %s %s, want %s", f.Type, f.Payload, m.Type())
	}
	return wire.Unmarshal(f.Version, f.Payload, m)
}

// judge takes one answer, which is for one of the open requests. It returns the code of a failure.
func (o *ordeal) judge(f wire.Frame, id wire.ClientID, device int, open map[uint32]int) (wire.Code, error) {
	if f.Type == wire.TypeError {
		var e wire.Error
		if err := expect(f, &e); err != nil {
			return "", err
		}
		if _, ok := open[e.ID]; !ok || !e.HasID || e.Close {
			return "", fmt.Errorf("an error that is no open request's: %s", f.Payload)
		}
		delete(open, e.ID)
		count, _ := o.failed.LoadOrStore(e.Code, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
		return e.Code, nil
	}
	var resp wire.Response
	if err := expect(f, &resp); err != nil {
		return "", err
	}
	n, ok := open[resp.ID]
	if !ok {
		return "", fmt.Errorf("answer %d is no open request's: %s", resp.ID, resp.Body)
	}
	delete(open, resp.ID)
	if want := hostileAnswer(id, hostileBody(device, n)); !bytes.Equal(resp.Body, want) {
		return "", fmt.Errorf("answer %d is %s, want %s", resp.ID, resp.Body, want)
	}
	o.answered.Add(1)
	return "", nil
}
