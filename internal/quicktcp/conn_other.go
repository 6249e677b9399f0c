//go:build !linux

package quicktcp

import "net"

// Wrap returns conn.
func Wrap(conn net.Conn) net.Conn { return conn }
