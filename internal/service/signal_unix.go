//go:build unix

package service

import (
	"os"
	"syscall"
)

// restartSignal asks a process to start a new one in its place.
var restartSignal os.Signal = syscall.SIGUSR2
