package mqtt

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// subscription is a filter that the device has subscribed to.
type subscription struct {
	filter string
	levels []string
	qos    byte
}

// match finds the subscriptions to a topic, and the highest QoS among them. mu is held.
func (t *Translator) match(topic string) (qos byte, ok bool) {
	for i := range t.subs {
		if s := &t.subs[i]; matches(s.levels, topic) {
			qos, ok = max(qos, s.qos), true
		}
	}
	return qos, ok
}

// matches compares a topic with a filter's levels (MQTT 5, §4.7).
func matches(levels []string, topic string) bool {
	rest, more := topic, true
	for _, want := range levels {
		if want == "#" {
			return true
		}
		if !more {
			return false
		}
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if want != "+" && want != level {
			return false
		}
	}
	return !more
}

// parseFilter splits a filter into its levels; false if it is none.
func parseFilter(filter string) ([]string, bool) {
	if filter == "" || len(filter) > maxFilter {
		return nil, false
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		switch {
		case level == "+", level == "#" && i == len(levels)-1:
		case strings.ContainsAny(level, "+#"):
			return nil, false
		}
	}
	return levels, true
}

// isLevel reports whether a service's name can stand in a topic.
func isLevel(name string) bool {
	return name != "" && utf8.ValidString(name) && !strings.ContainsAny(name, "/+#\x00")
}

// parseRequest splits the topic of a request. The id is written in one way only, so that the answer's topic is the one that
// the device expects.
func parseRequest(topic string) (service string, id uint32, ok bool) {
	rest, ok := strings.CutPrefix(topic, topicRequest)
	service, digits, found := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(digits, 10, 32)
	ok = ok && found && isLevel(service) && err == nil && strconv.FormatUint(n, 10) == digits
	return service, uint32(n), ok
}

// topic joins what parseRequest splits.
func topicOf(kind, service string, id uint32) string {
	return kind + service + "/" + strconv.FormatUint(uint64(id), 10)
}
