package gateway

import (
	"net"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/limittest"
)

// RELIABILITY row 15: without descriptors a gateway serves who is there and accepts again when there are some, and does
// not spin until then.
func TestOutOfDescriptors(t *testing.T) {
	w := newWorld(t, testDoc())
	const descriptors = 96
	c := w.child(t, limittest.Descriptors(descriptors))
	live := w.enrolledAt(c.addr, clientID(1))
	live.served()
	var crowd []net.Conn
	for range 8 * descriptors { // the kernel takes more than the gateway
		crowd = append(crowd, dialRaw(t, c.addr))
	}
	eventually(t, "a connection cannot be accepted", func() bool { return c.report().FailedAccepts > 0 })
	const starving = 1500 * time.Millisecond
	before := c.report()
	begun := time.Now()
	for id := uint32(2); time.Since(begun) < starving; id++ {
		live.roundTrip(id)
		time.Sleep(20 * time.Millisecond)
	}
	after := c.report()
	took := time.Since(begun)
	if after.FailedAccepts == before.FailedAccepts {
		t.Error("everything was accepted: the descriptors were not used up")
	}
	if n := after.FailedAccepts - before.FailedAccepts; float64(n) > 20*took.Seconds() {
		t.Errorf("%d failed accepts in %v, want a back-off", n, took)
	}
	if cpu := after.CPU - before.CPU; cpu > took*2/3 {
		t.Errorf("%v of CPU time in %v, want no spinning", cpu, took)
	}
	for _, conn := range crowd {
		_ = conn.Close()
	}
	w.enrolledAt(c.addr, clientID(2)).roundTrip(1)
	live.roundTrip(1_000_000)
}
