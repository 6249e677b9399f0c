package stacktest

// Looking for thousands of secrets, in each form that they could be seen in, in many megabytes.

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

// needles are texts to look for, all at once: they are thousands.
type needles map[string][]needle // by their first bytes

type needle struct{ text, what string }

const needleHead = 12 // bytes; no needle is shorter

func newNeedles(secrets map[string]string) needles {
	all := needles{}
	for value, whose := range secrets {
		for form, text := range forms(value) {
			head := text[:needleHead]
			all[head] = append(all[head], needle{text, whose + ", " + form + ","})
		}
	}
	return all
}

// in are those that a text has in it.
func (all needles) in(text string) []string {
	var found []string
	for i := range max(0, len(text)-needleHead+1) {
		for _, n := range all[text[i:i+needleHead]] {
			if strings.HasPrefix(text[i:], n.text) && !slices.Contains(found, n.what) {
				found = append(found, n.what)
			}
		}
	}
	return found
}

// TestNeedles: what nothingSecret would miss, nobody would miss.
func TestNeedles(t *testing.T) {
	const token, key = "01234567-89ab-cdef-0123-456789abcdef", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	all := newNeedles(map[string]string{token: "a token", key: "a key", "a-password-of-some-length": "a password"})
	for _, tt := range []struct {
		text string
		want []string
	}{
		{`{"level":"info","token":"` + token + `"}`, []string{"a token, as it is,"}},
		{"0123456789abcdef0123456789abcdef", []string{"a token, without dashes,"}}, // all of it
		{"x 0123456789abcdef0123456789abcdef.", []string{"a token, without dashes,"}},
		{"ASNFZ4mrze8BI0VniavN7w==", []string{"a token, in base64 of its bytes,"}},
		{"key AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 and " + key + "\n", []string{"a key, in base64 of its bytes,", "a key, as it is,"}},
		{"a-password-of-some-lengt", nil},
		{"short", nil},
		{"", nil},
	} {
		if got := all.in(tt.text); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
}

// forms are those in which a secret could be seen.
func forms(value string) map[string]string {
	hash := sha256.Sum256([]byte(value))
	all := map[string]string{
		"as it is":           value,
		"in hex":             hex.EncodeToString([]byte(value)),
		"in base64":          base64.RawStdEncoding.EncodeToString([]byte(value)),
		"by its hash":        hex.EncodeToString(hash[:]),
		"by its base64 hash": base64.RawStdEncoding.EncodeToString(hash[:]),
	}
	// Those that are hex, or a UUID, stand for bytes, which have forms of their own.
	digits := strings.ReplaceAll(value, "-", "")
	if raw, err := hex.DecodeString(digits); err == nil {
		hash := sha256.Sum256(raw)
		if digits != value {
			all["without dashes"] = digits
		}
		all["in base64 of its bytes"] = base64.RawStdEncoding.EncodeToString(raw)
		if url := base64.RawURLEncoding.EncodeToString(raw); url != all["in base64 of its bytes"] {
			all["in URLs' base64 of its bytes"] = url
		}
		all["by the hash of its bytes"] = hex.EncodeToString(hash[:])
		all["by the base64 hash of its bytes"] = base64.RawStdEncoding.EncodeToString(hash[:])
	}
	return all
}
