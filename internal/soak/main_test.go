package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const passing = `{"Action":"start","Package":"example.org/p"}
{"Action":"run","Package":"example.org/p","Test":"TestQuick"}
{"Action":"output","Package":"example.org/p","Test":"TestQuick","Output":"=== RUN   TestQuick\n"}
{"Action":"pass","Package":"example.org/p","Test":"TestQuick","Elapsed":0.01}
{"Action":"run","Package":"example.org/p","Test":"TestSoak"}
{"Action":"attr","Package":"example.org/p","Test":"TestSoak","Key":"locked out","Value":"0 of 60000"}
{"Action":"attr","Package":"example.org/p","Test":"TestSoak","Key":"memory","Value":"+1.2 %"}
{"Action":"pass","Package":"example.org/p","Test":"TestSoak","Elapsed":61.26}
{"Action":"output","Package":"example.org/p","Output":"ok  \texample.org/p\t61.3s\n"}
{"Action":"pass","Package":"example.org/p","Elapsed":61.3}
`

const failing = `{"Action":"run","Package":"example.org/p","Test":"TestSoak"}
{"Action":"output","Package":"example.org/p","Test":"TestSoak","Output":"    soak_test.go:7: it broke\n"}
{"Action":"fail","Package":"example.org/p","Test":"TestSoak","Elapsed":2}
{"Action":"output","Package":"example.org/p","Output":"FAIL\texample.org/p\t2s\n"}
{"Action":"fail","Package":"example.org/p","Elapsed":2}
`

const empty = "<!-- soak: begin -->\n<!-- soak: end -->\n"

func record(t *testing.T, input string) (code int, document, stdout, stderr string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "soak.md")
	if err := os.WriteFile(path, []byte(empty), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code = run([]string{"--write-docs", path}, strings.NewReader(input), &out, &errs)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return code, string(text), out.String(), errs.String()
}

func TestPassingRunIsRecorded(t *testing.T) {
	code, document, stdout, stderr := record(t, passing)
	if code != 0 {
		t.Fatalf("exit code %d, want 0: %s", code, stderr)
	}
	if want := "ok  \texample.org/p\t61.3s\n"; stdout != want {
		t.Errorf("printed %q, want %q", stdout, want)
	}
	for _, want := range []string{"2 tests passed", "| p TestSoak | 1m1.3s |", "locked out: 0 of 60000; memory: +1.2 %"} {
		if !strings.Contains(document, want) {
			t.Errorf("no %q in\n%s", want, document)
		}
	}
	if strings.Contains(document, "TestQuick") {
		t.Errorf("a quick test without figures is listed:\n%s", document)
	}
}

func TestOtherRunsAreNot(t *testing.T) {
	for _, test := range []struct{ name, input, printed, complaint string }{
		{"a test fails", failing, "    soak_test.go:7: it broke\nFAIL\texample.org/p\t2s\n", "0 tests passed, 2 failed"},
		{"no test ran", "", "", "0 tests passed, 0 failed"},
		{"not JSON", "go: no such package\n", "", "reading go test -json"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, document, stdout, stderr := record(t, test.input)
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if document != empty {
				t.Errorf("figures were kept:\n%s", document)
			}
			if stdout != test.printed {
				t.Errorf("printed %q, want %q", stdout, test.printed)
			}
			if !strings.Contains(stderr, test.complaint) {
				t.Errorf("complained %q, want %q", stderr, test.complaint)
			}
		})
	}
}
