package configtest

import (
	"strings"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/config"
)

type limits struct {
	Rate  float64 `yaml:"rate"`
	Hosts []host  `yaml:"hosts"`
}

type host struct {
	Name string `yaml:"name"`
}

type sample struct {
	Listen string        `yaml:"listen"`
	Wait   time.Duration `yaml:"wait"`
	File   string        `yaml:"file"`
	Limits limits        `yaml:"limits"`
}

const good = `# Configuration
## sample
| key | type | default | environment | meaning |
|---|---|---|---|---|
| $listen$ | text | $:1$ | $GOSHIELD_LISTEN$ | |
| $wait$ | duration | $1m30s$ | $GOSHIELD_WAIT$ | |
| $file$ | text | none | $GOSHIELD_FILE$ | |
| $limits.rate$ | number | $0.5$ | $GOSHIELD_LIMITS_RATE$ | |
| $limits.hosts$ | list of objects | none | $GOSHIELD_LIMITS_HOSTS$ | |
| $limits.hosts[].name$ | text | required | – | |
## other
| $elsewhere$ | text | none | $GOSHIELD_ELSEWHERE$ | |
`

func TestCompareFindsWhatIsMissingWrongAndTooMuch(t *testing.T) {
	cfg := sample{Listen: ":1", Wait: 90 * time.Second, Limits: limits{Rate: 0.5}}
	for _, tt := range []struct{ name, old, new, want string }{
		{"all is well", "", "", ""},
		{"a key without a row", "| $wait$ ", "| wait ", "no row for a key:\nwant | `wait` | duration | `1m30s` | `GOSHIELD_WAIT` |"},
		{"an element without a row", "| $limits.hosts[].name$ ", "| name ", "no row for a key:\nwant | `limits.hosts[].name` | text |  |  |"},
		{"a row without a key", "$file$ | text | none | $GOSHIELD_FILE$ | |\n", "$file$ | text | none | $GOSHIELD_FILE$ | |\n| $gone$ | text | none | – | |\n", `"gone" is no key`},
		{"another type", "$wait$ | duration", "$wait$ | text", "\n got | `wait` | text | `1m30s` | `GOSHIELD_WAIT` |\nwant | `wait` | duration | `1m30s` | `GOSHIELD_WAIT` |"},
		{"another default", "$:1$", "$:2$", "\n got | `listen` | text | `:2` | `GOSHIELD_LISTEN` |\nwant | `listen` | text | `:1` | `GOSHIELD_LISTEN` |"},
		{"a default where there is none", "| none | $GOSHIELD_FILE$", "| $x$ | $GOSHIELD_FILE$", "\n got | `file` | text | `x` | `GOSHIELD_FILE` |\nwant | `file` | text |  | `GOSHIELD_FILE` |"},
		{"another variable", "$GOSHIELD_WAIT$", "$GOSHIELD_WAITS$", "\n got | `wait` | duration | `1m30s` | `GOSHIELD_WAITS` |\nwant | `wait` | duration | `1m30s` | `GOSHIELD_WAIT` |"},
	} {
		text := strings.ReplaceAll(strings.Replace(good, tt.old, tt.new, 1), "$", "`")
		got, err := read(text, "sample")
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if faults := strings.Join(compare(got, rowsOf(config.Keys(&cfg))), "; "); faults != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, faults, tt.want)
		}
	}
}

func TestReadRefusesWhatItCannotTrust(t *testing.T) {
	text := strings.ReplaceAll(good, "$", "`")
	if _, err := read(text, "smaple"); err == nil {
		t.Error("a section that is not there: got no error")
	}
	if _, err := read(strings.Replace(text, "`file`", "`wait`", 1), "sample"); err == nil {
		t.Error("a key that comes twice: got no error")
	}
}
