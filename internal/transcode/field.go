package transcode

import (
	"encoding/json"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// Which field it is that does not fit.

// searchDepth is how deep a field of JSON is looked for: each level costs as much as parsing it.
const searchDepth = 8

// findJSON is the path to the first member that does not fit by itself; "": each does.
func (t *Transcoder) findJSON(d protoreflect.MessageDescriptor, body []byte, depth int) string {
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil {
		return ""
	}
	names := make([]string, 0, len(members))
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if t.fits(d, name, members[name]) {
			continue
		}
		path := shortName(name)
		f := d.Fields().ByJSONName(name)
		if f == nil {
			f = d.Fields().ByTextName(name)
		}
		if f == nil || depth == 0 || f.Message() == nil || f.IsMap() {
			return path
		}
		if !f.IsList() {
			return join(path, t.findJSON(f.Message(), members[name], depth-1))
		}
		var elements []json.RawMessage
		if json.Unmarshal(members[name], &elements) != nil {
			return path
		}
		for i, element := range elements {
			if t.unmarshalJSON(element, dynamicpb.NewMessage(f.Message())) != nil {
				return join(path+"["+strconv.Itoa(i)+"]", t.findJSON(f.Message(), element, depth-1))
			}
		}
		return path
	}
	return ""
}

// fits tries one member.
func (t *Transcoder) fits(d protoreflect.MessageDescriptor, name string, value []byte) bool {
	quoted, err := json.Marshal(name)
	if err != nil {
		return false
	}
	one := slices.Concat([]byte("{"), quoted, []byte(":"), value, []byte("}"))
	return t.unmarshalJSON(one, dynamicpb.NewMessage(d)) == nil
}

// shortName is a member's name that a device made up, as far as it is of interest.
func shortName(name string) string {
	const limit = 64
	runes := []rune(name)
	return string(runes[:min(len(runes), limit)])
}

func join(path, rest string) string {
	if rest == "" {
		return path
	}
	return path + "." + rest
}

// checkWire looks at a message's bytes: whether they are fields, of the wire types that the descriptor says (where the library
// would take another one for an unknown field), and not too deep. It returns what is wrong, and the path to it. Fields that
// the descriptor does not know are left alone.
func checkWire(d protoreflect.MessageDescriptor, body []byte, depth int) (path, why string) {
	if depth >= maxDepth {
		return "", "too many messages inside each other"
	}
	for len(body) > 0 {
		num, typ, n := protowire.ConsumeTag(body)
		if n < 0 {
			return "", "the bytes are no fields"
		}
		body = body[n:]
		f := d.Fields().ByNumber(num)
		if n = protowire.ConsumeFieldValue(num, typ, body); n < 0 {
			return nameOf(f), "the field is cut short, or none"
		}
		value := body[:n]
		body = body[n:]
		if f == nil {
			continue
		}
		packed := typ == protowire.BytesType && f.IsList() && wireType(f.Kind()) != protowire.BytesType && f.Kind() != protoreflect.GroupKind
		if typ != wireType(f.Kind()) && !packed {
			return nameOf(f), "the field is of another type than " + f.Kind().String()
		}
		if f.Kind() == protoreflect.MessageKind {
			inner, _ := protowire.ConsumeBytes(value) // its length was checked
			if path, why := checkWire(f.Message(), inner, depth+1); why != "" {
				return join(nameOf(f), path), why
			}
		}
	}
	return "", ""
}

func nameOf(f protoreflect.FieldDescriptor) string {
	if f == nil {
		return ""
	}
	return string(f.Name())
}

func wireType(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	}
	return protowire.VarintType
}
