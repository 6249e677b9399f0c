// Package eventloop relays TCP connections in epoll event loops: one loop per
// processor, one read buffer per loop, and 128 bytes per connection. It promises
// what package relay promises, asks and tells a Director the same things, and
// runs on Linux only.
//
//	e := eventloop.New(eventloop.Options{Log: log, Settings: settings})
//	err := e.Serve(ln, director) // returns at once
//	…
//	e.StopListening()
//	err = e.Wait(ctx) // until the last connection has ended
//	e.Close()
//
// # One connection
//
// Its SYN completes at a listening socket that every loop has in its epoll set, with
// EPOLLEXCLUSIVE, so that one loop wakes. That one accepts it (loop.accept), has the
// Director admit it (loop.welcome), and hands it to the loop with the fewest
// connections, for the kernel wakes loops in a fixed order and would give most to the
// first. The loop that adopts it takes a pair from its slab, and adds the socket to its epoll
// set, edge-triggered, for every event there is: no epoll_ctl follows until it is closed.
//
// The Director names an upstream (loop.place); connect is begun and the wheel told when
// to give it up. Until it has succeeded the client is not read from: what it sends waits in the
// kernel, so another upstream can be tried as if nothing had happened. Then the PROXY
// header goes out (loop.connected), in one write with what the client has sent
// already.
//
// From here on an event says that a side can be read. The loop takes up to 64
// events; for each it reads into the next free part of its buffer (loop.fetch); then it writes
// all of it (loop.passOn). A short read has emptied the socket, so there is one recv and one
// send per message and direction. What a socket does not take is copied to a backlog
// of pooled chunks; as long as there is one, the side it came from is not read, which
// makes the kernel close its window: that is all the backpressure there is, and a
// backlog is never longer than one read. The kernel tells when there is room again (loop.flush).
// When all backlogs together have what they may (Options.Backlogs), nothing is held any more: bytes are looked at,
// written, and taken from their socket only then (loop.carry). So memory has a bound that no number of connections moves.
//
// A side that fills the buffer four times in a row sends a stream. It is spliced from then
// on (loop.stream): socket to pipe to socket, the bytes never leaving the kernel, 512 KiB
// a turn. The pipe is the loop's, lent for the move; only bytes that are stuck in it keep it
// with the pair, in the backlog's place. Small moves bring the side back to
// copying.
//
// A side's end is passed on as shutdown once the backlog has gone (loop.end); when both
// have ended the pair is finished. An error is passed on as a reset, by SO_LINGER 0
// (loop.reset). If it is a write that fails, what its peer had sent before is read and
// passed on first: broken remembers, since the kernel tells of an error only once. The
// idle timer is never moved: when it comes up it looks at when a byte moved last.
//
// # What the loop owes to measurements
//
// Nine tenths of the CPU time of a small message is the kernel's, so what counts
// is how often, and in what order, the kernel is called. Against one HAProxy thread,
// reading a whole batch before writing it took 4 % off a round trip. Calls that cannot block
// do without the scheduler's bookkeeping. A loop that waits does so in a system call that the
// scheduler knows of: waiting in the runtime's own poller, through the epoll descriptor, costs
// three system calls more each time, and wakes idle threads for events of busy
// loops. But the runtime's monitor thread takes the processor (the P) from a
// goroutine that waits while none is idle, or that has not been through the scheduler for 10 ms, and
// then looks every 20 µs for the next: 4 to 9 % of all CPU time. So loops yield every 9 ms, and
// a process whose job is to relay should run with one more GOMAXPROCS than Loops: 35 µs instead
// of 43 per round trip at a third of the peak rate, 16 µs instead of 18 at the peak.
//
// # Files
//
// engine: the loops as one; loop: events, messages, waiting; accept, dial, relay, splice: a connection's life
// in that order; carry: relay without memory; slab, wheel, backlog: what holds it; syscalls, proxy: at the border.
package eventloop
