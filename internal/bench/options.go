//go:build linux

package main

import (
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are what a run can be told. Each mode has defaults of its own and
// uses what means something to it.
type options struct {
	rounds      int
	warm        time.Duration // load before each measurement
	window      time.Duration // of each measurement
	turns       int           // windows that it is divided into, with those of others between them
	heartbeat   time.Duration // a sign of life of each connection
	beats       int           // of them, before a connection counts as idle
	silence     time.Duration // before a connection is woken
	threads     []int         // that a contestant may use: one set of rounds for each
	connections []int         // as well
	devices     []int         // that there are tokens of
	payload     int           // bytes
	field       []contestant  // who can take part; after validate, who does
	proxies     []string      // by name; none: the usual ones
	peers       []string      // whom ours is compared with, see against
	binaries    string        // directory of GoShield's

	takesTurns, givesSigns bool // the mode uses turns; heartbeat and beats
}

func (o *options) register(flags *flag.FlagSet) {
	flags.IntVar(&o.rounds, "rounds", o.rounds, "`how many` times each contestant is measured")
	flags.DurationVar(&o.warm, "warm", o.warm, "load before each measurement")
	flags.DurationVar(&o.window, "window", o.window, "how long each measurement takes")
	if o.takesTurns = o.turns > 0; o.takesTurns {
		flags.IntVar(&o.turns, "turns", o.turns, "`how many` windows each measurement at saturation consists of, in turn with those of others")
	}
	if o.givesSigns = o.heartbeat > 0; o.givesSigns {
		flags.DurationVar(&o.heartbeat, "heartbeat", o.heartbeat, "each connection gives a sign of life so often")
		flags.IntVar(&o.beats, "beats", o.beats, "`how many` each has given before its memory is taken")
	}
	flags.Var((*intList)(&o.threads), "threads", "threads of each contestant, a `list`")
	flags.Var((*intList)(&o.connections), "connections", "how many connections, a `list`")
	if len(o.devices) > 0 {
		flags.Var((*intList)(&o.devices), "devices", "how many devices have tokens, a `list`")
	}
	flags.IntVar(&o.payload, "payload", o.payload, "`bytes` of each message")
	flags.Var((*nameList)(&o.proxies), "proxies", "who takes part, a `list`; usually all but "+copyName)
	flags.StringVar(&o.binaries, "binaries", "", "`directory` of GoShield's binaries; without it, it does not take part")
}

// validate also settles who takes part.
func (o *options) validate() error {
	for _, name := range o.proxies {
		if !slices.ContainsFunc(o.field, func(c contestant) bool { return c.name == name }) {
			return fmt.Errorf("-proxies: no %q", name)
		}
	}
	o.field = slices.DeleteFunc(slices.Clone(o.field), func(c contestant) bool {
		wanted := slices.Contains(o.proxies, c.name) || len(o.proxies) == 0 && c.name != copyName
		return !wanted || c.ours != "" && o.binaries == ""
	})
	switch {
	case len(o.field) == 0:
		return fmt.Errorf("-proxies: nobody takes part")
	case o.rounds < 1:
		return fmt.Errorf("-rounds: must be at least 1, got %d", o.rounds)
	case o.window <= 0:
		return fmt.Errorf("-window: must be positive, got %s", o.window)
	case o.payload < minPayload || o.payload > maxPayload:
		return fmt.Errorf("-payload: must be from %d to %d, got %d", minPayload, maxPayload, o.payload)
	case o.takesTurns && o.turns < 1:
		return fmt.Errorf("-turns: must be at least 1, got %d", o.turns)
	case o.givesSigns && (o.heartbeat <= 0 || o.beats < 1):
		return fmt.Errorf("-heartbeat and -beats: must be positive, got %s and %d", o.heartbeat, o.beats)
	case len(o.threads) == 0 || slices.Min(o.threads) < 1:
		return fmt.Errorf("-threads: each must be at least 1")
	case len(o.connections) == 0 || slices.Min(o.connections) < 1:
		return fmt.Errorf("-connections: each must be at least 1")
	case len(o.devices) > 0 && slices.Min(o.devices) < slices.Max(o.connections):
		return fmt.Errorf("-devices: no fewer than connections")
	}
	return nil
}

// against are those whom ours is compared with; goals are about the first.
func (o *options) against() []string {
	if o.peers == nil {
		return []string{haproxyName, nginxName}
	}
	return o.peers
}

// ours is the name of GoShield's contestant, "" if none takes part.
func (o *options) ours() string {
	for _, c := range o.field {
		if c.ours != "" {
			return c.name
		}
	}
	return ""
}

type intList []int

func (l *intList) String() string {
	var parts []string
	for _, n := range *l {
		parts = append(parts, strconv.Itoa(n))
	}
	return strings.Join(parts, ",")
}

func (l *intList) Set(text string) error {
	*l = nil
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return fmt.Errorf("%q is no number", part)
		}
		*l = append(*l, n)
	}
	return nil
}

type nameList []string

func (l *nameList) String() string { return strings.Join(*l, ",") }

func (l *nameList) Set(text string) error {
	*l = strings.Split(text, ",")
	return nil
}
