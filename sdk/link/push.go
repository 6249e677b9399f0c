package link

// PushResult says what became of a pushed message.
type PushResult uint8

// The results, as PUSH_RESULT carries them in one byte.
const (
	PushAcknowledged PushResult = 0 // the device has it
	PushNotConnected PushResult = 1 // the device is not on this gateway
	PushQueueFull    PushResult = 2 // the device does not read fast enough
	PushTimedOut     PushResult = 3 // sent, and not acknowledged in time: it may have arrived
)

var pushResultNames = [...]string{"acknowledged", "not_connected", "queue_full", "timed_out"}

// Valid reports whether r is a result of this protocol.
func (r PushResult) Valid() bool { return int(r) < len(pushResultNames) }

// String is the result's name, "unknown" for one that is not of this protocol:
// it is safe as a metric label.
func (r PushResult) String() string {
	if !r.Valid() {
		return "unknown"
	}
	return pushResultNames[r]
}
