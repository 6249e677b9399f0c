package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestKeysAreThoseOfTheFileWithTheirVariables(t *testing.T) {
	type inner struct {
		Rate  float64 `yaml:"rate"`
		Burst float64
	}
	cfg := struct {
		Listen  string             `yaml:"listen"`
		Bucket  inner              `yaml:"bucket"`
		Plain   inner              `yaml:",inline"`
		MaxLen  int                `yaml:"max-len"`
		List    []inner            `yaml:"list"`
		ByName  map[string]float64 `yaml:"by_name"`
		Ignored string             `yaml:"-"`
		hidden  string
	}{Listen: ":1"}
	cfg.hidden = "not a key"

	want := "listen GOSHIELD_LISTEN, bucket.rate GOSHIELD_BUCKET_RATE, bucket.burst GOSHIELD_BUCKET_BURST, " +
		"rate GOSHIELD_RATE, burst GOSHIELD_BURST, max-len GOSHIELD_MAX_LEN, list GOSHIELD_LIST, by_name GOSHIELD_BY_NAME"
	var got []string
	for _, k := range Keys(&cfg) {
		got = append(got, k.Path+" "+k.Env)
	}
	if strings.Join(got, ", ") != want {
		t.Errorf("keys:\n got %s\nwant %s", strings.Join(got, ", "), want)
	}
	if v := Keys(&cfg)[0].Value.String(); v != ":1" {
		t.Errorf("value of listen: got %q, want %q", v, ":1")
	}
}

func TestFindAndSet(t *testing.T) {
	type limit struct {
		Rate float64 `yaml:"rate"`
	}
	type outer struct {
		Document struct {
			Bucket limit    `yaml:",inline"`
			Own    limit    `yaml:"own"`
			List   []string `yaml:"list"`
		} `yaml:"document"`
	}
	for _, tt := range []struct {
		path, text string
		want       func(o *outer)
	}{
		{"document.rate", "2.5", func(o *outer) { o.Document.Bucket.Rate = 2.5 }},
		{"document.own.rate", "3", func(o *outer) { o.Document.Own.Rate = 3 }},
		{"document.own", `{"rate": 4}`, func(o *outer) { o.Document.Own.Rate = 4 }},
		{"document.own", "rate: 5", func(o *outer) { o.Document.Own.Rate = 5 }},
		{"document.list", "a, b", func(o *outer) { o.Document.List = []string{"a", "b"} }},
		{"document.list", `["c"]`, func(o *outer) { o.Document.List = []string{"c"} }},
	} {
		var got, want outer
		tt.want(&want)
		k, ok := Find(&got, tt.path)
		if !ok {
			t.Errorf("%s: not found", tt.path)
			continue
		}
		if err := k.Set(tt.text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("set %s to %s: got %+v, %v, want %+v", tt.path, tt.text, got, err, want)
		}
	}
	for _, path := range []string{"", "documents", "document.", "document.bucket", "document.own.rate.more", "document.list.0"} {
		if k, ok := Find(new(outer), path); ok {
			t.Errorf("found %q: %v, want nothing", path, k.Value)
		}
	}
	k, _ := Find(new(outer), "document.own")
	if err := k.Set(`{"rat": 4}`); err == nil || !strings.Contains(err.Error(), "unknown key rat") {
		t.Errorf("an unknown key within: %v, want it named", err)
	}
}
