package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Name     string        `yaml:"name"`
	Timeout  time.Duration `yaml:"timeout"`
	Count    int           `yaml:"count"`
	Share    float64       `yaml:"share"`
	On       bool          `yaml:"on"`
	Listen   []string      `yaml:"listen"`
	Health   health        `yaml:"health"`
	Services []health      `yaml:"services"`
}

type health struct {
	Interval   time.Duration `yaml:"interval"`
	SlowStart  time.Duration `yaml:"slow_start"`
	AllowedIDs []string      `yaml:"allowed_ids"`
}

func (s *sample) Validate() error {
	if s.Health.Interval < 100*time.Millisecond {
		return Errorf("health.interval", "must be at least 100ms, got %v", s.Health.Interval)
	}
	return nil
}

func defaults() sample {
	return sample{Name: "default", Timeout: time.Second, Health: health{Interval: time.Second}}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lb.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFileOverridesDefaultsAndEnvironmentOverridesFile(t *testing.T) {
	path := write(t, "name: file\ntimeout: 3s\nhealth: {interval: 2s, slow_start: 10s}\nservices: [{interval: 1s}]\n")
	got := defaults()
	env := []string{
		"GOSHIELD_NAME=env", "GOSHIELD_COUNT=-7", "GOSHIELD_SHARE=0.25", "GOSHIELD_ON=true",
		"GOSHIELD_LISTEN=:1, :2", "GOSHIELD_HEALTH_SLOW_START=250ms", "GOSHIELD_HEALTH_ALLOWED_IDS=a,b", "OTHER=1",
	}
	if err := Load(path, env, &got); err != nil {
		t.Fatal(err)
	}
	switch {
	case got.Name != "env", got.Timeout != 3*time.Second, got.Count != -7, got.Share != 0.25, !got.On,
		strings.Join(got.Listen, "|") != ":1|:2", got.Health.Interval != 2*time.Second,
		got.Health.SlowStart != 250*time.Millisecond, strings.Join(got.Health.AllowedIDs, "|") != "a|b",
		len(got.Services) != 1 || got.Services[0].Interval != time.Second:
		t.Errorf("got %+v", got)
	}
}

func TestWithoutFile(t *testing.T) {
	got := defaults()
	if err := Load("", nil, &got); err != nil || got.Name != "default" {
		t.Errorf("got %+v, %v", got, err)
	}
	empty := defaults()
	if err := Load(write(t, ""), nil, &empty); err != nil || empty.Name != "default" {
		t.Errorf("empty file: got %+v, %v", empty, err)
	}
}

func TestErrorsNameTheKey(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		env        []string
		want       string
	}{
		{"value out of range", "health: {interval: 5ms}", nil, "lb.yaml: health.interval: must be at least 100ms, got 5ms"},
		{"unknown key", "health: {intervall: 5s}", nil, "lb.yaml: line 1: unknown key intervall"},
		{"unknown top-level key", "healthy: true", nil, "healthy"},
		{"bad duration", "timeout: soon", nil, "soon"},
		{"not YAML", "a: [", nil, "lb.yaml: "},
		{"bad duration in the environment", "", []string{"GOSHIELD_HEALTH_INTERVAL=soon"}, `GOSHIELD_HEALTH_INTERVAL: must be a duration such as 500ms or 2s, got "soon"`},
		{"bad number", "", []string{"GOSHIELD_COUNT=x"}, "GOSHIELD_COUNT: must be a whole number"},
		{"bad float", "", []string{"GOSHIELD_SHARE=x"}, "GOSHIELD_SHARE: must be a number"},
		{"bad bool", "", []string{"GOSHIELD_ON=maybe"}, "GOSHIELD_ON: must be true or false"},
		{"list of objects", "", []string{"GOSHIELD_SERVICES=x"}, "GOSHIELD_SERVICES: a list of objects"},
	} {
		got := defaults()
		err := Load(write(t, tt.file), tt.env, &got)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q in it", tt.name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "config.sample") {
			t.Errorf("%s: %v names a Go type", tt.name, err)
		}
	}
}

func TestMissingFile(t *testing.T) {
	got := defaults()
	if err := Load("/nonexistent/lb.yaml", nil, &got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not-exist", err)
	}
}

func TestErrorUnwraps(t *testing.T) {
	err := &Error{Key: "listen", Err: os.ErrPermission}
	if !errors.Is(err, os.ErrPermission) || err.Error() != "listen: permission denied" {
		t.Errorf("got %v", err)
	}
}

// level reads itself from text.
type level int

func (l *level) UnmarshalText(b []byte) error {
	if string(b) != "high" {
		return errors.New("must be high")
	}
	*l = 3
	return nil
}

func TestEnvironmentReadsInlineFieldsAndTextUnmarshalers(t *testing.T) {
	type Inner struct {
		Rate float64 `yaml:"rate"`
	}
	var got struct {
		Limit struct {
			Inner `yaml:",inline"`
			Level level `yaml:"level"`
		} `yaml:"limit"`
	}
	if err := Load("", []string{"GOSHIELD_LIMIT_RATE=2.5", "GOSHIELD_LIMIT_LEVEL=high"}, &got); err != nil {
		t.Fatal(err)
	}
	if got.Limit.Rate != 2.5 || got.Limit.Level != 3 {
		t.Errorf("limit = %+v, want rate 2.5, level 3", got.Limit)
	}
	err := Load("", []string{"GOSHIELD_LIMIT_LEVEL=low"}, &got)
	if want := "GOSHIELD_LIMIT_LEVEL: must be high"; err == nil || err.Error() != want {
		t.Errorf("error = %v, want %s", err, want)
	}
}
