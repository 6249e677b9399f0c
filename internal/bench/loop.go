//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loop serves many sockets with one goroutine. Clients and servers of a
// benchmark share the machine with what they measure: the less they cost, the
// more the figures say about the proxy, and a loop costs a third of a goroutine
// for each connection. It is used by one goroutine.
type loop struct {
	epoll    int
	handlers []handler // by descriptor
	events   []syscall.EpollEvent
	buf      []byte // for whoever is being handled
	yielded  time.Time
}

// handler is told that its socket can be read, written, or has failed. An error
// ends the loop's turn, and with it the load or the server.
type handler interface{ ready(events uint32) error }

func newLoop() (*loop, error) {
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	return &loop{epoll: epoll, events: make([]syscall.EpollEvent, 256), buf: make([]byte, 64<<10)}, nil
}

// yieldEvery is how long a loop keeps out of the Go scheduler. After 10 ms the runtime's
// monitor thread takes many short waits for one long run.
const yieldEvery = 9 * time.Millisecond

// spareProcessor is for a process that is one loop. While no processor is idle, the
// runtime's monitor thread takes the loop's away each time it waits and is awake every
// 20 µs for that: a tenth of all CPU time, on the core that the clients share with the server.
func spareProcessor() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1) }

// watch begins to tell h of events on fd, which is not blocking.
func (l *loop) watch(fd int, events uint32, h handler) error {
	for len(l.handlers) <= fd {
		l.handlers = append(l.handlers, nil)
	}
	l.handlers[fd] = h
	return l.control(syscall.EPOLL_CTL_ADD, fd, events)
}

// change tells of other events from now on.
func (l *loop) change(fd int, events uint32) error {
	return l.control(syscall.EPOLL_CTL_MOD, fd, events)
}

func (l *loop) control(operation, fd int, events uint32) error {
	event := syscall.EpollEvent{Events: events, Fd: int32(fd)}
	if err := syscall.EpollCtl(l.epoll, operation, fd, &event); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// drop closes a socket. In the course of a turn, only its own handler may do so.
func (l *loop) drop(fd int) {
	if fd < len(l.handlers) {
		l.handlers[fd] = nil
	}
	_ = syscall.Close(fd)
}

// close ends the loop itself; its sockets are their handlers'.
func (l *loop) close() { _ = syscall.Close(l.epoll) }

// turn waits for events for at most so long and handles them.
func (l *loop) turn(atMost time.Duration) error {
	milliseconds, err := l.wait(atMost)
	if err != nil {
		return err
	}
	if now := time.Now(); now.Sub(l.yielded) > yieldEvery {
		l.yielded = now
		runtime.Gosched()
	}
	n, err := syscall.EpollWait(l.epoll, l.events, milliseconds)
	if err != nil && !errors.Is(err, syscall.EINTR) {
		return fmt.Errorf("epoll_wait: %w", err)
	}
	for _, event := range l.events[:max(n, 0)] {
		h := l.handlers[event.Fd]
		if h == nil {
			continue
		}
		if err := h.ready(event.Events); err != nil {
			return err
		}
	}
	return nil
}

// turnUntil handles events until the time has come.
func (l *loop) turnUntil(end time.Time) error {
	for {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := l.turn(left); err != nil {
			return err
		}
	}
}

// turnWhile handles events for a window, and for longer while it is wanting.
func (l *loop) turnWhile(w *window, d time.Duration) error {
	err := l.turnUntil(w.begin.Add(d))
	for err == nil && w.wanting() {
		err = l.turn(10 * time.Millisecond)
	}
	return err
}

// wait is the part of a wait that epoll_wait, which knows whole milliseconds
// only, is too coarse for. What is left to it is returned.
func (l *loop) wait(atMost time.Duration) (milliseconds int, err error) {
	const coarse = 2 * time.Millisecond
	switch {
	case atMost <= 0:
		return 0, nil
	case atMost > coarse:
		return int((atMost - time.Millisecond) / time.Millisecond), nil
	}
	limit := unix.NsecToTimespec(atMost.Nanoseconds())
	_, err = unix.Ppoll([]unix.PollFd{{Fd: int32(l.epoll), Events: unix.POLLIN}}, &limit, nil)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, fmt.Errorf("ppoll: %w", err)
	}
	return 0, nil
}

// startDial begins to connect to an IPv4 address. The socket, which does not
// block, can be written when it is connected, or has failed.
func startDial(to netip.AddrPort) (int, error) {
	fd, err := newSocket()
	if err != nil {
		return -1, err
	}
	err = syscall.Connect(fd, &syscall.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err != nil && !errors.Is(err, syscall.EINPROGRESS) {
		_ = syscall.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, nil
}

// dialled is the outcome of startDial, once the socket can be written.
func dialled(fd int) error {
	code, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ERROR)
	if err == nil && code != 0 {
		err = syscall.Errno(code)
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// listenOn listens on a port of its own at 127.0.0.1.
func listenOn() (fd int, address string, err error) {
	if fd, err = newSocket(); err != nil {
		return -1, "", err
	}
	if err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err == nil {
		err = syscall.Listen(fd, 4096)
	}
	var name syscall.Sockaddr
	if err == nil {
		name, err = syscall.Getsockname(fd)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return -1, "", fmt.Errorf("listen: %w", err)
	}
	bound := name.(*syscall.SockaddrInet4) // what was asked for above
	return fd, netip.AddrPortFrom(netip.AddrFrom4(bound.Addr), uint16(bound.Port)).String(), nil
}

func newSocket() (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	return fd, noDelay(fd)
}

// noDelay: as net.Dial and net.Listen have it.
func noDelay(fd int) error {
	return syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
}

// recv and send do without the Go scheduler's bookkeeping around system calls: the
// sockets do not block.
func recv(fd int, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return result(n, errno)
}

func send(fd int, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), syscall.MSG_NOSIGNAL, 0, 0)
	return result(n, errno)
}

func result(n uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// tryAgain says whether a call only has to be repeated later.
func tryAgain(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR)
}
