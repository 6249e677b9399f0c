package balancer

import "math"

// Long-lived connections stay where they are: a gateway that joins would be idle until others
// fail. Levelling takes from those that have too many. It goes in rounds of a second.
const (
	// tooMany is how far above its share an upstream must be for levelling to begin,
	// for confirmRounds rounds on end; it goes on until none is above enough.
	tooMany       = 1.1
	enough        = 1.02
	confirmRounds = 3
	// settleRounds is how long a device that was asked may take to leave. Until then it is taken as
	// one that may or may not be counted still.
	settleRounds = 6
	// After vainRounds rounds on end in which nobody could be moved, levelling rests for restRounds.
	vainRounds = 5
	restRounds = 60
)

// upstreamLoad is what an upstream carries.
type upstreamLoad struct {
	upstream    *upstream
	connections int64
	weight      float64 // that counts now
}

// level decides how many devices of which upstream are to be asked to move. It belongs to one
// goroutine.
type level struct {
	active bool
	above  int // rounds on end above tooMany, while not active
	vain   int // rounds on end without success, while active
	rest   int // rounds to go
	moved  int // since it became active
	asked  map[*upstream]*[settleRounds]int
	at     int // the present round's place in asked
}

// round takes the loads of the upstreams that may get connections, and how many devices may be
// asked in a round. It returns how many of each are to be asked, by the place in loads; nil: none. Unless that is nil,
// tell must follow.
func (l *level) round(loads []upstreamLoad, pace int) []int {
	if l.asked == nil {
		l.asked = map[*upstream]*[settleRounds]int{}
	}
	l.at = (l.at + 1) % settleRounds
	for _, lately := range l.asked {
		lately[l.at] = 0
	}
	if l.rest > 0 {
		l.rest--
		return nil
	}
	if !l.switched(loads) {
		return nil
	}
	over, total := make([]int, len(loads)), 0
	for i, s := range surpluses(loads) {
		over[i] = max(0, s-l.lately(loads[i].upstream))
		total += over[i]
	}
	if total == 0 {
		return nil
	}
	return portion(over, total, pace)
}

// switched works out whether levelling is active in this round.
func (l *level) switched(loads []upstreamLoad) bool {
	worst := excess(loads)
	switch {
	case l.active && worst <= enough, len(loads) < 2:
		l.active, l.above = false, 0
	case !l.active && worst > tooMany:
		if l.above++; l.above >= confirmRounds {
			l.active, l.vain, l.moved = true, 0, 0
		}
	case !l.active:
		l.above = 0
	}
	return l.active
}

// tell takes how many devices of an upstream will move. Done ends the round: without any, it was in
// vain.
func (l *level) tell(u *upstream, moved int) {
	lately := l.asked[u]
	if lately == nil {
		lately = new([settleRounds]int)
		l.asked[u] = lately
	}
	lately[l.at] += moved
	l.moved += moved
}

// done ends a round in which so many devices moved, and reports whether levelling gives up for a while.
func (l *level) done(moved int) (givesUp bool) {
	if moved > 0 {
		l.vain = 0
		return false
	}
	if l.vain++; l.vain < vainRounds {
		return false
	}
	l.active, l.above, l.rest = false, 0, restRounds
	return true
}

func (l *level) lately(u *upstream) (n int) {
	if lately := l.asked[u]; lately != nil {
		for _, asked := range lately {
			n += asked
		}
	}
	return n
}

// forget drops what it knows of upstreams that are not among loads.
func (l *level) forget(loads []upstreamLoad) {
	known := map[*upstream]bool{}
	for _, one := range loads {
		known[one.upstream] = true
	}
	for u := range l.asked {
		if !known[u] {
			delete(l.asked, u)
		}
	}
}

// surpluses is how many connections each has above its share, rounded up: what moving can mend.
func surpluses(loads []upstreamLoad) []int {
	connections, weight := totals(loads)
	list := make([]int, len(loads))
	for i, one := range loads {
		share := math.Ceil(float64(connections) * one.weight / weight)
		list[i] = max(0, int(one.connections)-int(share))
	}
	return list
}

// excess is how far the one that has most is above its share: 1 is not at all. What cannot be mended
// does not count.
func excess(loads []upstreamLoad) float64 {
	connections, weight := totals(loads)
	worst := 1.0
	for i, surplus := range surpluses(loads) {
		if surplus > 0 {
			worst = max(worst, float64(loads[i].connections)/(float64(connections)*loads[i].weight/weight))
		}
	}
	return worst
}

func totals(loads []upstreamLoad) (connections int64, weight float64) {
	for _, one := range loads {
		connections += one.connections
		weight += one.weight
	}
	return connections, weight
}

// portion deals at most pace among those that are over, in the proportion of what they are over by.
func portion(over []int, total, pace int) []int {
	deal := make([]int, len(over))
	left := min(pace, total)
	share := float64(left) / float64(total)
	for i, n := range over {
		deal[i] = int(float64(n) * share)
		left -= deal[i]
	}
	for i := 0; left > 0; i = (i + 1) % len(over) {
		if deal[i] < over[i] {
			deal[i]++
			left--
		}
	}
	return deal
}
