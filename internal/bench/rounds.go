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
// once, in turn.
func interleave[T any](ctx context.Context, opt options, once func(context.Context, contestant, *setting[T]) (T, error)) ([]*setting[T], error) {
	return allRounds(opt, func(s *setting[T]) error { return s.round(ctx, opt, once) })
}

// allRounds runs the rounds of all settings; round adds to the setting what it found.
func allRounds[T any](opt options, round func(*setting[T]) error) ([]*setting[T], error) {
	var settings []*setting[T]
	for _, threads := range opt.threads {
		for _, connections := range opt.connections {
			s := &setting[T]{Threads: threads, Connections: connections, Rounds: map[string][]T{}}
			settings = append(settings, s)
			for range opt.rounds {
				if err := round(s); err != nil {
					return nil, fmt.Errorf("%s, %w", s, err)
				}
			}
		}
	}
	return settings, nil
}

func (s *setting[T]) round(ctx context.Context, opt options, once func(context.Context, contestant, *setting[T]) (T, error)) error {
	for _, c := range opt.field {
		found, err := once(ctx, c, s)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		s.add(c.name, found)
	}
	return nil
}

// add adds a round of a contestant.
func (s *setting[T]) add(name string, found T) { s.Rounds[name] = append(s.Rounds[name], found) }

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
