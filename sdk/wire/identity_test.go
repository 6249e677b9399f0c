package wire

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func TestClientIDFromMAC(t *testing.T) {
	const want = "5a777ab1f5dc193f889dca9a2de5c3cae446d9b8ad6ba65769cf2f8ad60f495e"
	for _, mac := range []string{
		"001a2b3c4d5e", "00:1A:2b-3c.4d5e", "00-1A-2B-3C-4D-5E", "001a.2b3c.4d5e", "00 1a 2b 3c 4d 5e", "001A2B3C4D5E",
	} {
		if got, err := ClientIDFromMAC(mac); err != nil || got.String() != want {
			t.Errorf("%q: got %v, %v, want %s", mac, got, err, want)
		}
	}
	for mac, want := range map[string]string{
		"":                   "0 hex digits",
		"::":                 "0 hex digits",
		"00:1a:2b:3c:4d":     "10 hex digits",
		"00:1a:2b:3c:4d:5e:": "",
		"00:1a:2b:3c:4d:5e0": "more than 12",
		"0g:1a:2b:3c:4d:5e":  "'g' is not a hex digit",
		"00/1a/2b/3c/4d/5e":  "'/' is not a hex digit",
	} {
		_, err := ClientIDFromMAC(mac)
		if want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", mac, err, want)
		}
	}
}

func TestParseClientID(t *testing.T) {
	text := testClientID(t).String()
	if id, err := ParseClientID(text); err != nil || id != testClientID(t) {
		t.Errorf("%s: got %v, %v", text, id, err)
	}
	for _, bad := range []string{"", text[1:], text + "0", strings.ToUpper(text), "g" + text[1:], text[:63] + " "} {
		if id, err := ParseClientID(bad); err == nil || id != (ClientID{}) {
			t.Errorf("%q: got %v, %v, want an error", bad, id, err)
		}
	}
	var v struct{ ID ClientID }
	if err := json.Unmarshal([]byte(`{"ID":"`+text+`"}`), &v); err != nil || v.ID != testClientID(t) {
		t.Errorf("as JSON: got %v, %v", v.ID, err)
	}
	if err := json.Unmarshal([]byte(`{"ID":"abc"}`), &v); err == nil {
		t.Error("as JSON, too short: no error")
	}
}

func TestParseToken(t *testing.T) {
	token := testToken(t)
	if token.Text() != tokenText {
		t.Errorf("Text: got %s, want %s", token.Text(), tokenText)
	}
	for _, bad := range []string{
		"", tokenText[1:], tokenText + "0", strings.ToUpper(tokenText), strings.ReplaceAll(tokenText, "-", "0"),
		strings.ReplaceAll(tokenText, "-", ""), "{" + tokenText[1:35] + "}", "6ba7b8109-dad-11d1-80b4-00c04fd430c8",
		"6ba7b810-9dad-11d1-80b4-00c04fd430cg", "6ba7b810-9dad-11d1-80b4-00c04fd430-8",
	} {
		got, err := ParseToken(bad)
		if err == nil || !got.IsZero() {
			t.Errorf("%q: no error", bad)
		} else if bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: the error repeats it: %v", bad, err)
		}
	}
	for text, want := range map[string]Token{`"` + tokenText + `"`: token, `""`: {}} {
		var v Token
		if err := json.Unmarshal([]byte(text), &v); err != nil || v != want {
			t.Errorf("as JSON: got an error %v or another token", err)
		}
		if out, err := json.Marshal(v); err != nil || string(out) != text {
			t.Errorf("to JSON: got %s, %v, want %s", out, err, text)
		}
	}
}

// Computed with another implementation (Python's hmac) from group key 00…1f,
// nonce aa…, binding bb….
func TestProofVector(t *testing.T) {
	group := make([]byte, 32)
	var nonce, binding [32]byte
	for i := range group {
		group[i], nonce[i], binding[i] = byte(i), 0xaa, 0xbb
	}
	key := DeviceKey(group, testClientID(t))
	bound := ProofOf(key, nonce, binding, testClientID(t))
	unbound := ProofOf(key, nonce, [32]byte{}, testClientID(t))
	for _, test := range []struct {
		name string
		got  [32]byte
		want string
	}{
		{"device key", key, "04afb1d1cbe53ecdf42a2a591e2c18b1bfc2a7257a8641836f2450bc6e056a1d"},
		{"proof", bound, "b0903968a0c668b2589df9f4f6b32518e9652a162e89cf9637fa904ae17277ce"},
		{"proof without binding", unbound, "7753871b3cc866d32448ab83a6772b468126fad553c495588a69871f9861f77a"},
	} {
		if got := hex.EncodeToString(test.got[:]); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
}
