//go:build linux

package main

import (
	"fmt"
	"time"
)

// measure runs one measurement. When it returns no message is under way.
func (l *load) measure(spec measureSpec) (measurement, error) {
	l.earlier = nil
	if spec.Again {
		l.earlier = l.window
	}
	l.window, l.interval, l.closed = nil, 0, spec.Rate == 0
	run := l.runClosed
	if spec.Rate > 0 {
		run = l.runOpen
	}
	if err := run(spec); err != nil {
		return measurement{}, err
	}
	l.closed = false
	for deadline := time.Now().Add(patience); l.waiting > 0; {
		left := time.Until(deadline)
		if left <= 0 {
			return measurement{}, fmt.Errorf("%d messages were not answered within %s", l.waiting, patience)
		}
		if err := l.loop.turn(left); err != nil {
			return measurement{}, err
		}
	}
	return l.window.result()
}

// runClosed runs until the window has closed.
func (l *load) runClosed(spec measureSpec) error {
	for _, c := range l.clients {
		c.began = time.Now()
		if err := c.send(); err != nil {
			return err
		}
	}
	if err := l.loop.turnUntil(time.Now().Add(spec.Warm)); err != nil {
		return err
	}
	var err error
	if l.window, err = openOr(l.earlier, spec.PIDs); err != nil {
		return err
	}
	if err := l.loop.turnWhile(l.window, spec.Window); err != nil {
		return err
	}
	return l.window.close()
}

// runOpen runs until the window has closed. What was due in it may be answered
// later.
func (l *load) runOpen(spec measureSpec) error {
	l.interval = float64(time.Second) / spec.Rate
	l.from = int64(spec.Warm.Seconds() * spec.Rate)
	l.to = max(int64((spec.Warm+spec.Window).Seconds()*spec.Rate), l.from+1)
	l.start = time.Now()
	for _, c := range l.clients {
		c.answered = 0
	}
	for number := int64(0); number < l.to; {
		if left := time.Until(l.due(number)); left > 0 {
			if err := l.loop.turn(left); err != nil {
				return err
			}
			continue
		}
		if number == l.from {
			var err error
			if l.window, err = openOr(l.earlier, spec.PIDs); err != nil {
				return err
			}
		}
		if err := l.clients[number%int64(len(l.clients))].send(); err != nil {
			return err
		}
		number++
		if number%16 == 0 { // late as we are, answers are not left lying
			if err := l.loop.turn(0); err != nil {
				return err
			}
		}
	}
	if err := l.loop.turnWhile(l.window, l.due(l.to).Sub(l.window.begin)); err != nil {
		return err
	}
	return l.window.close()
}
