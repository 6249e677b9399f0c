//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
)

// setting is one combination of sizes, and what each contestant did in each
// round of it.
type setting[T any] struct {
	Threads     int            `json:"threads"`
	Connections int            `json:"connections"`
	Devices     int            `json:"devices,omitempty"`
	Rounds      map[string][]T `json:"rounds"` // by contestant
}

// interleave runs all rounds of all settings: in each round, every contestant
// once, in turn. once is given what the first of them, who is HAProxy if it takes
// part, did in the round; the first itself is given nil.
func interleave[T any](ctx context.Context, opt options, once func(context.Context, contestant, *setting[T], *T) (T, error)) ([]*setting[T], error) {
	var settings []*setting[T]
	for _, threads := range opt.threads {
		for _, connections := range opt.connections {
			s := &setting[T]{Threads: threads, Connections: connections, Rounds: map[string][]T{}}
			settings = append(settings, s)
			for range opt.rounds {
				if err := s.round(ctx, opt, once); err != nil {
					return nil, fmt.Errorf("%s, %w", s, err)
				}
			}
		}
	}
	return settings, nil
}

func (s *setting[T]) round(ctx context.Context, opt options, once func(context.Context, contestant, *setting[T], *T) (T, error)) error {
	var first *T
	for _, c := range opt.field {
		found, err := once(ctx, c, s, first)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if first == nil {
			first = &found
		}
		s.Rounds[c.name] = append(s.Rounds[c.name], found)
	}
	return nil
}

// of is one figure of a contestant, by round; empty if it is none of its (NaN).
func (s *setting[T]) of(name string, figure func(T) float64) series {
	var found series
	for _, round := range s.Rounds[name] {
		if f := figure(round); !math.IsNaN(f) {
			found = append(found, f)
		}
	}
	return found
}

// String names the setting.
func (s *setting[T]) String() string {
	if s.Devices > 0 {
		return fmt.Sprintf("%d devices, %d connections, %s", s.Devices, s.Connections, threadsText(s.Threads))
	}
	return fmt.Sprintf("%d connections, %s", s.Connections, threadsText(s.Threads))
}

// threadsText is "1 thread" or "2 threads".
func threadsText(n int) string {
	if n == 1 {
		return "1 thread"
	}
	return fmt.Sprintf("%d threads", n)
}
