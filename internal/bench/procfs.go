//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// establishedTo counts the connections that have been established to an IPv4 address by processes of this network namespace.
func establishedTo(address string) (int, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0, err
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0, err
	}
	ip := to.Addr().As4()
	remote, count := fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(ip[:]), to.Port()), 0
	for line := range strings.Lines(string(table)) {
		// sl, local address, remote address, state, ...
		const established = "01"
		if fields := strings.Fields(line); len(fields) > 3 && fields[2] == remote && fields[3] == established {
			count++
		}
	}
	return count, nil
}

// tick is the unit of times in /proc/PID/stat: USER_HZ, 100 on every Linux
// that Go runs on.
const tick = 10 * time.Millisecond

// usage is what a program has used so far, all its processes together.
type usage struct {
	User   time.Duration `json:"user_ns"`
	System time.Duration `json:"system_ns"`
}

func (u usage) total() time.Duration { return u.User + u.System }

func (u usage) plus(v usage) usage { return usage{u.User + v.User, u.System + v.System} }

func (u usage) minus(v usage) usage { return usage{u.User - v.User, u.System - v.System} }

// cpuUsed adds up the CPU time of processes, threads that have ended included.
func cpuUsed(pids []int) (usage, error) {
	var sum usage
	for _, pid := range pids {
		fields, err := stat(pid)
		if err != nil {
			return usage{}, err
		}
		user, err1 := strconv.ParseInt(fields[statUser], 10, 64)
		system, err2 := strconv.ParseInt(fields[statSystem], 10, 64)
		if err1 != nil || err2 != nil {
			return usage{}, fmt.Errorf("/proc/%d/stat: %q is no time", pid, fields[statUser:statSystem+1])
		}
		sum.User += time.Duration(user) * tick
		sum.System += time.Duration(system) * tick
	}
	return sum, nil
}

// Fields of /proc/PID/stat, counted from the one after the command's name: see
// proc_pid_stat(5), whose numbers are three higher.
const (
	statParent = 1
	statUser   = 11
	statSystem = 12
)

func stat(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The command's name stands in brackets and may hold any character.
	end := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[end+1:]))
	if end < 0 || len(fields) <= statSystem {
		return nil, fmt.Errorf("/proc/%d/stat: cannot read %q", pid, text)
	}
	return fields, nil
}

// family is a process and its children.
func family(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	pids := []int{pid}
	parent := strconv.Itoa(pid)
	for _, entry := range entries {
		child, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		fields, err := stat(child)
		if err != nil {
			continue // it has ended since
		}
		if fields[statParent] == parent {
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// resident adds up the memory of processes in bytes. A page that several share
// counts in equal parts for each (the kernel's "Pss"), so that a program of
// many processes is not charged for its code again and again.
func resident(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		text, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		kilobytes, err := valueOf(string(text), "Pss:")
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += kilobytes << 10
	}
	return sum, nil
}

// valueOf is the number after a key at the beginning of a line.
func valueOf(text, key string) (int64, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			fields := strings.Fields(rest)
			if len(fields) == 0 {
				break
			}
			return strconv.ParseInt(fields[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("no number after %q", key)
}

// descriptors counts the open ones of processes.
func descriptors(pids []int) (int, error) {
	sum := 0
	for _, pid := range pids {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, err
		}
		sum += len(entries)
	}
	return sum, nil
}
