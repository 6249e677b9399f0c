//go:build !linux

package bench

import "time"

// fineSleep is what sleepFine is for: nothing here.
const fineSleep = 0

func sleepFine(d time.Duration) { time.Sleep(d) }
