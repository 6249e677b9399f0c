package wire

// A validating JSON scanner (RFC 8259) that allocates nothing and does not
// recurse: the request path needs where a value ends and that it is well formed,
// not what it holds. It accepts what encoding/json.Valid accepts (a fuzz target
// holds the two together), but for deeper nesting.

// maxDepth is how many objects and arrays a payload may open inside each other,
// its own object included; RFC 8259 §9 lets a parser set such a limit.
const maxDepth = 256

// ValidJSON reports whether b is one JSON value, with nothing but white space
// around it, nested at most 255 deep: what a body has to be in version 1.
func ValidJSON(b []byte) bool {
	i := skipValue(b, skipSpace(b, 0), 1) // inside the payload's object
	return i >= 0 && skipSpace(b, i) == len(b)
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// nesting is the objects and arrays that are open.
type nesting struct {
	depth   int
	objects [maxDepth / 64]uint64 // a bit each: 1 object, 0 array
}

func (n *nesting) open(object bool) {
	bit := uint64(1) << (n.depth % 64)
	if object {
		n.objects[n.depth/64] |= bit
	} else {
		n.objects[n.depth/64] &^= bit
	}
	n.depth++
}

func (n *nesting) inObject() bool {
	at := n.depth - 1
	return n.objects[at/64]>>(at%64)&1 == 1
}

// skipValue returns the index after the value that begins at b[i] inside so
// many levels of nesting, or -1 where none does.
func skipValue(b []byte, i, around int) int {
	var in nesting
	for {
		if i >= len(b) {
			return -1
		}
		if c := b[i]; c == '{' || c == '[' {
			if around+in.depth == maxDepth {
				return -1
			}
			i = skipSpace(b, i+1)
			if i >= len(b) || b[i] != c+2 { // "}" or "]"
				in.open(c == '{')
				if c == '{' {
					i = skipName(b, i)
				}
				if i < 0 {
					return -1
				}
				continue
			}
			i++
		} else if i = skipScalar(b, i); i < 0 {
			return -1
		}
		if i = in.skipSeparators(b, i); i < 0 || in.depth == 0 {
			return i
		}
	}
}

// skipSeparators takes what follows a value: the ends of what it closes, and
// the comma, and in an object the name, before the next value.
func (n *nesting) skipSeparators(b []byte, i int) int {
	for n.depth > 0 {
		i = skipSpace(b, i)
		if i >= len(b) {
			return -1
		}
		object := n.inObject()
		switch c := b[i]; {
		case c == ',' && object:
			return skipName(b, skipSpace(b, i+1))
		case c == ',':
			return skipSpace(b, i+1)
		case c == '}' && object, c == ']' && !object:
			n.depth--
			i++
		default:
			return -1
		}
	}
	return i
}

// skipName returns the index of the value whose name begins at b[i].
func skipName(b []byte, i int) int { return skipColon(b, skipString(b, i)) }

// skipColon returns the index of the value whose name ended before b[i].
func skipColon(b []byte, i int) int {
	if i < 0 {
		return -1
	}
	i = skipSpace(b, i)
	if i >= len(b) || b[i] != ':' {
		return -1
	}
	return skipSpace(b, i+1)
}

func skipScalar(b []byte, i int) int {
	switch c := b[i]; {
	case c == '"':
		return skipString(b, i)
	case c == '-' || (c >= '0' && c <= '9'):
		return skipNumber(b, i)
	case c == 't':
		return skipLiteral(b, i, "true")
	case c == 'f':
		return skipLiteral(b, i, "false")
	case c == 'n':
		return skipLiteral(b, i, "null")
	}
	return -1
}

func skipString(b []byte, i int) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c < 0x20:
			return -1
		case c == '\\':
			i++
			if i >= len(b) {
				return -1
			}
			switch b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for n := 0; n < 4; n++ {
					i++
					if i >= len(b) || !isHex(b[i]) {
						return -1
					}
				}
			default:
				return -1
			}
		}
	}
	return -1
}

func isHex(c byte) bool {
	return hexDigit(c) <= 0x0f || (c >= 'A' && c <= 'F')
}

func skipNumber(b []byte, i int) int {
	if b[i] == '-' {
		i++
	}
	switch {
	case i >= len(b):
		return -1
	case b[i] == '0':
		i++
	default:
		if i = skipDigits(b, i); i < 0 {
			return -1
		}
	}
	if i < len(b) && b[i] == '.' {
		if i = skipDigits(b, i+1); i < 0 {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		return skipDigits(b, i)
	}
	return i
}

// skipDigits wants at least one digit.
func skipDigits(b []byte, i int) int {
	from := i
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		i++
	}
	if i == from {
		return -1
	}
	return i
}

func skipLiteral(b []byte, i int, lit string) int {
	if len(b)-i < len(lit) || string(b[i:i+len(lit)]) != lit {
		return -1
	}
	return i + len(lit)
}

// members walks the members of the object that begins at b[i].
type members struct {
	b       []byte
	i       int // at the '{'; later, after the last thing read
	started bool
}

type memberState int

const (
	membersMore memberState = iota
	membersDone             // i is after the '}'
	membersBad              // not an object
)

// next returns the name, with its quotes, and the value of the next member.
func (m *members) next() (name, value []byte, state memberState) {
	from := m.nextName()
	switch {
	case from < 0:
		return nil, nil, membersBad
	case m.b[from] == '}':
		m.i = from + 1
		return nil, nil, membersDone
	}
	nameEnd := skipString(m.b, from)
	valueAt := skipColon(m.b, nameEnd)
	if valueAt < 0 {
		return nil, nil, membersBad
	}
	m.i = skipValue(m.b, valueAt, 1)
	if m.i < 0 {
		return nil, nil, membersBad
	}
	return m.b[from:nameEnd], m.b[valueAt:m.i], membersMore
}

// nextName returns where the next name, or the end of the object, has to be, or
// -1 where neither can be.
func (m *members) nextName() int {
	open := byte(',')
	if !m.started {
		open = '{'
	}
	i := skipSpace(m.b, m.i)
	if i >= len(m.b) {
		return -1
	}
	if m.started && m.b[i] == '}' {
		return i
	}
	if m.b[i] != open {
		return -1
	}
	i = skipSpace(m.b, i+1)
	if i >= len(m.b) || (m.started && m.b[i] == '}') { // "{}" is an object, {"a":1,} is none
		return -1
	}
	m.started = true
	return i
}
