package wire

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func benchmarkRequest(b *testing.B, version byte, body int) []byte {
	frame, err := Append(nil, version, &Request{ID: 77, Token: testToken(b), Service: "echo", Body: []byte(`"` + strings.Repeat("x", body-2) + `"`)})
	if err != nil {
		b.Fatal(err)
	}
	return frame
}

func BenchmarkParseHeader(b *testing.B) {
	header := []byte{1, 3, 0, 90}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseHeader(header, DefaultMaxPayload); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnmarshalRequest(b *testing.B) {
	for _, version := range []byte{Version1, Version2} {
		for _, body := range []int{64, 4096} {
			b.Run(fmt.Sprintf("version=%d/body=%d", version, body), func(b *testing.B) {
				payload := benchmarkRequest(b, version, body)[HeaderSize:]
				var req Request
				b.ReportAllocs()
				b.SetBytes(int64(len(payload)))
				for b.Loop() {
					if err := Unmarshal(version, payload, &req); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkAppendResponse(b *testing.B) {
	for _, version := range []byte{Version1, Version2} {
		b.Run(fmt.Sprintf("version=%d", version), func(b *testing.B) {
			m := &Response{ID: 77, Body: []byte(`"` + strings.Repeat("x", 62) + `"`)}
			var out []byte
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if out, err = Append(out[:0], version, m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkValidJSON(b *testing.B) {
	body := []byte(`[` + strings.Repeat(`{"name":"meter","value":12.5,"ok":true,"tags":["a","b"]},`, 40) + `null]`)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if !ValidJSON(body) {
			b.Fatal("refused")
		}
	}
}

func BenchmarkReader(b *testing.B) {
	stream := bytes.Repeat(benchmarkRequest(b, Version1, 64), 100)
	src := bytes.NewReader(stream)
	r := NewReader(src, 0)
	b.ReportAllocs()
	b.SetBytes(int64(len(stream)))
	for b.Loop() {
		src.Reset(stream)
		for range 100 {
			if _, err := r.Next(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
