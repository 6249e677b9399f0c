//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// bout is a contestant in a round in which the whole field runs at the same time, each with its load. Only one of them is
// busy at any time.
type bout struct {
	*trial
	who  contestant
	load *peer
	pids []int // of the proxy
}

// stop ends the load, and all that the trial is.
func (b *bout) stop() {
	if b.load != nil {
		b.load.stop()
	}
	b.trial.stop()
}

func stopAll(bouts []*bout) {
	for _, b := range bouts {
		b.stop()
	}
}

// meet starts the field, each with its load. The caller stops them, also those that there are with an error.
func (r *rig) meet(ctx context.Context, threads int, opt options, load func(*trial) (*peer, error)) ([]*bout, error) {
	var bouts []*bout
	for _, c := range opt.field {
		t, err := r.start(ctx, c, threads, opt)
		if err != nil {
			return bouts, fmt.Errorf("%s: %w", c.name, err)
		}
		b := &bout{trial: t, who: c}
		bouts = append(bouts, b)
		if b.load, err = load(t); err == nil {
			b.pids, err = t.proxy.pids()
		}
		if err != nil {
			return bouts, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return bouts, nil
}

// takeTurns measures each in so many short windows, one after the other (A B C A B C), so that what the machine does for a second or
// two meets all alike. The windows of each add up to opt.window. A rate of 0 is saturation. request is what asks a load.
func takeTurns(ctx context.Context, bouts []*bout, turns int, rate float64, opt options, request func(measureSpec) any) ([]measurement, error) {
	found := make([]measurement, len(bouts))
	spec := measureSpec{Warm: opt.warm, Window: opt.window / time.Duration(turns), Rate: rate}
	for range turns {
		for i, b := range bouts {
			var err error
			spec.PIDs = b.pids
			if found[i], err = b.measure(ctx, b.load, request(spec), opt); err != nil {
				return nil, fmt.Errorf("%s: %w", b.name, err)
			}
		}
		// Processes are warm now, but for what others have had in the caches since.
		spec.Warm, spec.Again = opt.warm/3, true
	}
	return found, nil
}
