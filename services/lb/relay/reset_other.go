//go:build !linux

package relay

import "net"

// wasReset is known on Linux only.
func wasReset(*net.TCPConn) bool { return false }
