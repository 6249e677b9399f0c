//go:build linux

package eventloop

import (
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below go to the kernel without telling the Go scheduler: every
// descriptor is non-blocking, so they return within microseconds and the
// bookkeeping around a call that may block (entersyscall, the watch of sysmon,
// the hand-over of the P) would only cost. A stop-the-world waits for the one in
// progress. epollPoll may take milliseconds; the call that blocks for longer, the wait of an
// idle loop, is epollWait, which does tell it.

// recv reads from a socket. (0, 0) is the end of the stream.
func recv(fd int32, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return int(n), errno
}

// send writes to a socket what the kernel takes now, without SIGPIPE.
func send(fd int32, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// peek is recv of what stays in the socket.
func peek(fd int32, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_PEEK, 0, 0)
	return int(n), errno
}

// splice moves up to limit bytes between a pipe and a socket inside the kernel.
func splice(from, to int32, limit int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(limit), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(n), errno
}

// accept takes one connection, non-blocking and close-on-exec; the peer's
// address is left in a.
func accept(fd int32, a *sockaddr) (int32, unix.Errno) {
	a.size = unix.SizeofSockaddrInet6
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(unsafe.Pointer(&a.size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int32(n), errno
}

func openSocket(family int) (int32, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(n), errno
}

func connect(fd int32, a *sockaddr) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(a.size))
	return errno
}

// localAddress asks which of this machine's addresses a connection came to, and
// remoteAddress where it comes from. Both give the zero AddrPort when the kernel does not know
// any more.
func localAddress(fd int32) netip.AddrPort  { return address(unix.SYS_GETSOCKNAME, fd) }
func remoteAddress(fd int32) netip.AddrPort { return address(unix.SYS_GETPEERNAME, fd) }

func address(call uintptr, fd int32) netip.AddrPort {
	a := sockaddr{size: unix.SizeofSockaddrInet6}
	_, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(unsafe.Pointer(&a.size)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return a.addrPort()
}

func setOption(fd int32, level, option int, value unsafe.Pointer, size uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(value), size, 0)
	return errno
}

func setNoDelay(fd int32) unix.Errno {
	on := int32(1)
	return setOption(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, unsafe.Pointer(&on), unsafe.Sizeof(on))
}

// resetOnClose makes the close of fd send RST instead of FIN.
func resetOnClose(fd int32) unix.Errno {
	linger := unix.Linger{Onoff: 1, Linger: 0}
	return setOption(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&linger), unsafe.Sizeof(linger))
}

// pendingError takes the error that a socket has waiting, 0 for none.
func pendingError(fd int32) unix.Errno {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return unix.Errno(value)
}

func shutdownWrite(fd int32) {
	_, _, _ = unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

func closeFD(fd int32) {
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// watch adds fd to an epoll set; token and stamp come back with its events.
func watch(epoll, fd int32, events uint32, token, stamp int32) unix.Errno {
	ev := unix.EpollEvent{Events: events, Fd: token, Pad: stamp}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

func unwatch(epoll, fd int32) {
	_, _, _ = unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_DEL, uintptr(fd), 0, 0, 0)
}

// epollPoll asks for events, and waits for them for some milliseconds at most: the Go scheduler is not told.
func epollPoll(epoll int32, events []unix.EpollEvent, milliseconds int) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(milliseconds), 0, 0)
	if errno != 0 {
		return 0 // EINTR: the caller comes again
	}
	return int(n)
}

// epollWait waits for events, at most milliseconds (-1: for ever).
func epollWait(epoll int32, events []unix.EpollEvent, milliseconds int) int {
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(milliseconds), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// sockaddr is an address as the kernel writes it: sockaddr_in or sockaddr_in6.
type sockaddr struct {
	raw  unix.RawSockaddrInet6 // the larger of the two; a sockaddr_in lies over its start
	size uint32
}

func newSockaddr(a netip.AddrPort) sockaddr {
	var s sockaddr
	if a.Addr().Is4() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		in.Family = unix.AF_INET
		in.Addr = a.Addr().As4()
		putPort(&in.Port, a.Port())
		s.size = unix.SizeofSockaddrInet4
		return s
	}
	s.raw.Family = unix.AF_INET6
	s.raw.Addr = a.Addr().As16()
	s.raw.Scope_id = scopeOf(a.Addr())
	putPort(&s.raw.Port, a.Port())
	s.size = unix.SizeofSockaddrInet6
	return s
}

func (s *sockaddr) family() int { return int(s.raw.Family) }

// addrPort leaves out the scope of a link-local address, and gives an IPv4
// address that came through an IPv6 socket as IPv4.
func (s *sockaddr) addrPort() netip.AddrPort {
	switch s.raw.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), getPort(&in.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.raw.Addr).Unmap(), getPort(&s.raw.Port))
	}
	return netip.AddrPort{}
}

func putPort(to *uint16, port uint16) {
	b := (*[2]byte)(unsafe.Pointer(to))
	b[0], b[1] = byte(port>>8), byte(port)
}

func getPort(from *uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(from))
	return uint16(b[0])<<8 | uint16(b[1])
}

// scopeOf is the number of the interface that a link-local address belongs to.
func scopeOf(a netip.Addr) uint32 {
	zone := a.Zone()
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	return 0
}
