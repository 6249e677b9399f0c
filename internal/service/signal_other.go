//go:build !unix

package service

import "os"

// restartSignal would ask a process to start a new one in its place; here there is none.
var restartSignal os.Signal
