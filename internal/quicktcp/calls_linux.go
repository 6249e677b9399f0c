//go:build linux && !race

package quicktcp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// receive reads from a socket. (0, 0) is the end of the stream.
func receive(fd uintptr, b []byte) (int, unix.Errno) {
	at := unsafe.Pointer(unsafe.SliceData(b)) //nolint:gosec // the call ends before b does
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(at), uintptr(len(b)), 0, 0, 0)
	return int(n), errno
}

// transmit writes to a socket what the kernel takes now, without SIGPIPE.
func transmit(fd uintptr, b []byte) (int, unix.Errno) {
	at := unsafe.Pointer(unsafe.SliceData(b)) //nolint:gosec // the call ends before b does
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(at), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}
