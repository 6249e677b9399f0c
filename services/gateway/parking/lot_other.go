//go:build !linux

package parking

import (
	"errors"
	"fmt"
)

// Lot is a set of parked connections. Systems without epoll have none: see New.
type Lot struct{}

// New fails with errors.ErrUnsupported: readers stay with their connections.
func New() (*Lot, error) { return nil, fmt.Errorf("parking needs epoll: %w", errors.ErrUnsupported) }

// Park parks nothing.
func (*Lot) Park(*Space, Waker) bool { return false }

// Leave does nothing.
func (*Lot) Leave(*Space) {}

// Run returns at once.
func (*Lot) Run() {}

// Close does nothing.
func (*Lot) Close() {}
