// Package transcode turns bodies from JSON into Protocol Buffers messages and back, for services that speak one of the two
// to devices that speak the other. The messages are those of a descriptor set, as protoc and buf write it; the JSON is
// that of ProtoJSON (https://protobuf.dev/programming-guides/json/).
//
//	t, err := transcode.New(transcode.Spec{Encoding: "protobuf", Descriptors: set, Request: "meter.Reading", Response: "meter.Receipt"})
//	body, isJSON, err := t.Request(body, true) // as the service wants it
//	body, err = t.Response(answer, true)       // as the device wants it
//
// Bodies come from outside: size and depth are bounded, and an error names the field.
package transcode

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// What a service's bodies may be.
const (
	JSON     = "json"
	Protobuf = "protobuf"
)

const (
	// MaxBody is the longest body that is made, in bytes: no frame holds a longer one.
	MaxBody = 65535
	// maxDepth is how deep messages may be inside each other.
	maxDepth = 64
	// maxDescriptors bounds a descriptor set, in bytes.
	maxDescriptors = 256 << 10
	// maxReason bounds the text of an error, in bytes.
	maxReason = 200
)

// Spec says what a service speaks. The zero Spec: whatever the device does.
type Spec struct {
	Encoding    string `json:"encoding,omitempty" yaml:"encoding,omitempty"`       // of the service's bodies: json or protobuf
	Descriptors string `json:"descriptors,omitempty" yaml:"descriptors,omitempty"` // a FileDescriptorSet with its imports, in base64
	Request     string `json:"request,omitempty" yaml:"request,omitempty"`         // full names of messages
	Response    string `json:"response,omitempty" yaml:"response,omitempty"`
	Push        string `json:"push,omitempty" yaml:"push,omitempty"` // "": pushes are handed on as they are
}

// SpecError is what is wrong with a Spec.
type SpecError struct {
	Field string // as in the configuration
	Err   error
}

// Error implements error.
func (e *SpecError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *SpecError) Unwrap() error { return e.Err }

// Transcoder converts one service's bodies. It is safe for concurrent use.
type Transcoder struct {
	json                    bool // the service's bodies are JSON
	types                   *dynamicpb.Types
	request, response, push protoreflect.MessageDescriptor // push may be nil
}

// New makes a Transcoder; nil for the zero Spec. The error is a *SpecError.
func New(s Spec) (*Transcoder, error) {
	if s == (Spec{}) {
		return nil, nil
	}
	if s.Encoding != JSON && s.Encoding != Protobuf {
		return nil, &SpecError{"encoding", fmt.Errorf(`must be "json" or "protobuf", got %q`, s.Encoding)}
	}
	files, err := readDescriptors(s.Descriptors)
	if err != nil {
		return nil, &SpecError{"descriptors", err}
	}
	t := &Transcoder{json: s.Encoding == JSON, types: dynamicpb.NewTypes(files)}
	for _, m := range []struct {
		field, name string
		to          *protoreflect.MessageDescriptor
	}{{"request", s.Request, &t.request}, {"response", s.Response, &t.response}, {"push", s.Push, &t.push}} {
		if m.name == "" && m.field == "push" {
			continue
		}
		if m.name == "" {
			return nil, &SpecError{m.field, errors.New("name a message of descriptors")}
		}
		d, err := files.FindDescriptorByName(protoreflect.FullName(m.name))
		if err != nil {
			return nil, &SpecError{m.field, fmt.Errorf("there is no %q in descriptors", m.name)}
		}
		message, ok := d.(protoreflect.MessageDescriptor)
		if !ok {
			return nil, &SpecError{m.field, fmt.Errorf("%q is no message", m.name)}
		}
		*m.to = message
	}
	return t, nil
}

func readDescriptors(text string) (*protoregistry.Files, error) {
	if text == "" {
		return nil, errors.New("a descriptor set is needed: protoc --include_imports --descriptor_set_out=FILE, in base64")
	}
	if base64.StdEncoding.DecodedLen(len(text)) > maxDescriptors {
		return nil, fmt.Errorf("more than %d bytes", maxDescriptors)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("is not base64")
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil || len(set.GetFile()) == 0 {
		return nil, errors.New("is no FileDescriptorSet")
	}
	registry, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, fmt.Errorf("cannot be used (was it made with --include_imports?): %s", reason(err))
	}
	return registry, nil
}

// Request makes the body of a request one for the service, and says whether it is JSON then. An error says what does not fit.
func (t *Transcoder) Request(body []byte, isJSON bool) ([]byte, bool, error) {
	if isJSON == t.json {
		return body, isJSON, nil
	}
	body, err := t.convert(t.request, body, t.json)
	return body, t.json, err
}

// Response makes the service's answer one for a device that wants JSON, or does not.
func (t *Transcoder) Response(body []byte, wantJSON bool) ([]byte, error) {
	if wantJSON == t.json {
		return body, nil
	}
	return t.convert(t.response, body, wantJSON)
}

// Pushed makes JSON of what the service pushes, as messages are until it is known what the device wants.
func (t *Transcoder) Pushed(body []byte) ([]byte, error) {
	if t.json || t.push == nil {
		return body, nil
	}
	return t.convert(t.push, body, true)
}

// Push makes a message in JSON one for the device.
func (t *Transcoder) Push(body []byte, wantJSON bool) ([]byte, error) {
	if wantJSON || t.push == nil {
		return body, nil
	}
	return t.convert(t.push, body, false)
}

// convert makes JSON of a message, or a message of JSON.
func (t *Transcoder) convert(d protoreflect.MessageDescriptor, body []byte, toJSON bool) (out []byte, err error) {
	m := dynamicpb.NewMessage(d)
	if toJSON {
		if field, why := checkWire(d, body, 0); why != "" {
			return nil, doesNotFit(d, field, why)
		}
		if err := (proto.UnmarshalOptions{Resolver: t.types, RecursionLimit: maxDepth}).Unmarshal(body, m); err != nil {
			return nil, doesNotFit(d, "", reason(err))
		}
		out, err = protojson.MarshalOptions{Resolver: t.types}.Marshal(m)
		if err != nil {
			return nil, doesNotFit(d, "", reason(err))
		}
		var compact bytes.Buffer // the library puts spaces in at will
		if err := json.Compact(&compact, out); err != nil {
			return nil, doesNotFit(d, "", reason(err))
		}
		out = compact.Bytes()
	} else {
		if err := t.unmarshalJSON(body, m); err != nil {
			return nil, doesNotFit(d, t.findJSON(d, body, searchDepth), reason(err))
		}
		if out, err = (proto.MarshalOptions{Deterministic: true}).Marshal(m); err != nil {
			return nil, doesNotFit(d, "", reason(err))
		}
	}
	if len(out) > MaxBody {
		return nil, fmt.Errorf("%s becomes %d bytes long, over the limit of %d", d.FullName(), len(out), MaxBody)
	}
	return out, nil
}

func (t *Transcoder) unmarshalJSON(body []byte, m proto.Message) error {
	return protojson.UnmarshalOptions{Resolver: t.types, RecursionLimit: maxDepth}.Unmarshal(body, m)
}

func doesNotFit(d protoreflect.MessageDescriptor, field, why string) error {
	if field == "" {
		return fmt.Errorf("the body is no %s: %s", d.FullName(), why)
	}
	return fmt.Errorf("the body is no %s: %s: %s", d.FullName(), field, why)
}

// reason is an error's text in one short line. The library varies its spaces, so that nobody relies on the text.
func reason(err error) string {
	text := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	text = strings.ToValidUTF8(text, "\ufffd")
	for len(text) > maxReason {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return text
}
