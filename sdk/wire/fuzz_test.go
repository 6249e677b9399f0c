package wire

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"testing"
)

func FuzzParseHeader(f *testing.F) {
	for _, frame := range goldenFrames(f, Version1) {
		f.Add(frame[:HeaderSize], 16384)
	}
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		if len(b) < HeaderSize {
			return
		}
		h, err := ParseHeader(b, limit)
		if !bytes.Equal(h.Append(nil), b[:HeaderSize]) {
			t.Errorf("%x: encodes as %x", b[:HeaderSize], h.Append(nil))
		}
		good := (b[0] == Version1 || b[0] == Version2) && Type(b[1]).Valid() && int(h.Length) <= limit
		if good != (err == nil) {
			t.Errorf("%x, limit %d: %v", b[:HeaderSize], limit, err)
		}
		if c := code(err); err != nil && c != CodeBadVersion && c != CodeBadFrame && c != CodeFrameTooLarge {
			t.Errorf("%x: code %q", b[:HeaderSize], c)
		}
	})
}

// decodeTwice decodes a payload, encodes what came of it and decodes again: the
// same message. It returns the message, nil if the payload was refused.
func decodeTwice(t *testing.T, version, typ byte, payload []byte) Message {
	t.Helper()
	if !Type(typ).Valid() || len(payload) > DefaultMaxPayload {
		return nil
	}
	kept := bytes.Clone(payload)
	m := newMessage(Type(typ))
	err := Unmarshal(version, payload, m)
	if !bytes.Equal(payload, kept) {
		t.Fatal("decoding changed the payload")
	}
	if err != nil {
		if c := code(err); c != CodeBadFrame && c != CodeBadToken {
			t.Errorf("error: got %v", err)
		}
		return nil
	}
	frame, err := Append(nil, version, m)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	again := newMessage(Type(typ))
	if err := Unmarshal(version, frame[HeaderSize:], again); err != nil {
		t.Fatalf("decode what was encoded: %v\n%q", err, frame[HeaderSize:])
	}
	if !reflect.DeepEqual(again, m) {
		t.Errorf("second time: got %+v\nwant %+v", again, m)
	}
	return m
}

// FuzzUnmarshal: what version 1 accepts, encoding/json reads as an object too.
func FuzzUnmarshal(f *testing.F) {
	for _, frame := range goldenFrames(f, Version1) {
		f.Add(frame[1], frame[HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, typ byte, payload []byte) {
		if decodeTwice(t, Version1, typ, payload) == nil {
			return
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal(payload, &object); err != nil {
			t.Errorf("encoding/json refuses what was accepted: %v", err)
		}
	})
}

// FuzzValidJSON holds the scanner against encoding/json.
func FuzzValidJSON(f *testing.F) {
	for _, s := range []string{
		``, ` `, `null`, `-0.5e+10`, `"\u00e9\n"`, `[1,{"a":[]}]`, `{"a":1,}`, `[1 2]`, `01`, `1.`, `"\x"`, "\"\x1f\"", `{"a"}`, `tru`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if deepest(b) >= maxDepth {
			return
		}
		if got, want := ValidJSON(b), json.Valid(b); got != want {
			t.Errorf("%q: got %v, want %v", b, got, want)
		}
	})
}

// deepest is at least as deep as b nests.
func deepest(b []byte) int { return bytes.Count(b, []byte("[")) + bytes.Count(b, []byte("{")) }

// FuzzReader reads one stream in one piece and in pieces whose lengths are the
// bytes of cuts: the same frames, the same end.
func FuzzReader(f *testing.F) {
	var all []byte
	for _, frame := range goldenFrames(f, Version1) {
		f.Add(frame, []byte{1, 1, 1, 1, 1}, uint16(0))
		all = append(all, frame...)
	}
	f.Add(all, []byte{3, 0, 200, 4, 255, 1}, uint16(300))
	f.Fuzz(func(t *testing.T, stream, cuts []byte, limit uint16) {
		want, wantErr := readAll(NewReader(bytes.NewReader(stream), int(limit)))
		src := &chunks{}
		for rest, i := stream, 0; len(rest) > 0; i++ {
			n := len(rest)
			if i < len(cuts) {
				n = min(int(cuts[i])+1, n)
			}
			src.pieces, rest = append(src.pieces, rest[:n]), rest[n:]
		}
		got, gotErr := readAll(NewReader(src, int(limit)))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("frames: got %q, want %q", got, want)
		}
		if code(gotErr) != code(wantErr) || (code(gotErr) == "" && gotErr != wantErr) {
			t.Errorf("end: got %v, want %v", gotErr, wantErr)
		}
		if wantErr == io.EOF {
			total := 0
			for _, frame := range want {
				total += len(frame)
			}
			if total == 0 && len(stream) > 0 {
				t.Errorf("a stream of %d bytes ended cleanly without a frame", len(stream))
			}
		}
	})
}
