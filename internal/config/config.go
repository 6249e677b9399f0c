// Package config loads a process's static configuration: defaults, then one
// YAML file, then the environment.
//
//	cfg := balancer.DefaultConfig()
//	if err := config.Load("lb.yaml", os.Environ(), &cfg); err != nil {
//		return err // lb.yaml: health.interval: must be at least 100ms, got 5ms
//	}
//
// Keys that nobody knows are errors. Every key of the file is also an
// environment variable: GOSHIELD_ and the key's path in capitals, joined by
// "_"; lists of strings are split at commas; lists of objects can stand in the
// file only. The environment wins over the file.
package config

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// EnvPrefix begins the name of every environment variable that is read.
const EnvPrefix = "GOSHIELD_"

// Validator is implemented by configurations that check their own values, by
// returning an *Error (or several, joined).
type Validator interface{ Validate() error }

// Error is a value that cannot be used, by its key: "health.interval".
type Error struct {
	Key string
	Err error
}

// Errorf makes an *Error.
func Errorf(key, format string, args ...any) error {
	return &Error{Key: key, Err: fmt.Errorf(format, args...)}
}

// Error implements error.
func (e *Error) Error() string { return e.Key + ": " + e.Err.Error() }

// Unwrap implements errors.Unwrap.
func (e *Error) Unwrap() error { return e.Err }

// Load fills out, a pointer to a struct that holds the defaults, from the file
// at path ("" for none) and from environ (as os.Environ gives it), then
// validates it if it is a Validator. Errors name the file and the key, or the
// environment variable.
func Load(path string, environ []string, out any) error {
	source := "environment"
	if path != "" {
		source = filepath.Base(path)
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := Decode(f, out); err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
	}
	if err := applyEnv(environ, reflect.ValueOf(out).Elem()); err != nil {
		return err
	}
	if v, ok := out.(Validator); ok {
		if err := v.Validate(); err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
	}
	return nil
}

// Decode reads one YAML (or JSON) document into out and refuses keys that out
// does not have. An empty document changes nothing.
func Decode(r io.Reader, out any) error {
	dec := yaml.NewDecoder(r)
	dec.KnownFields(true)
	err := dec.Decode(out)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return errors.New(tidy(err.Error()))
	}
	return nil
}

var unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)

// tidy says what the YAML library says in the words of the file's author.
func tidy(msg string) string {
	msg = unknownKey.ReplaceAllString(msg, "unknown key $1")
	msg = strings.ReplaceAll(msg, "yaml: ", "")
	msg = strings.ReplaceAll(msg, "construct errors: ", "")
	lines := strings.FieldsFunc(msg, func(r rune) bool { return r == '\n' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	if len(lines) > 1 && strings.HasSuffix(lines[0], ":") {
		return strings.Join(lines[1:], "; ")
	}
	return strings.Join(lines, "; ")
}

func applyEnv(environ []string, out reflect.Value) error {
	for _, k := range keysOf(out, nil) {
		text, ok := lookup(environ, k.Env)
		if !ok {
			continue
		}
		if err := set(k.Value, text); err != nil {
			return fmt.Errorf("%s: %w", k.Env, err)
		}
	}
	return nil
}

func lookup(environ []string, name string) (string, bool) {
	for i := len(environ) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(environ[i], name+"="); ok {
			return value, true
		}
	}
	return "", false
}

var durationType = reflect.TypeFor[time.Duration]()

func set(v reflect.Value, text string) error {
	if v.Type() == durationType {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("must be a duration such as 500ms or 2s, got %q", text)
		}
		v.SetInt(int64(d))
		return nil
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("must be true or false, got %q", text)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("must be a whole number, got %q", text)
		}
		v.SetInt(n)
	case reflect.Float64:
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("must be a number, got %q", text)
		}
		v.SetFloat(x)
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.String {
			return errors.New("a list of objects can be set in the file only")
		}
		var list []string
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		v.Set(reflect.ValueOf(list).Convert(v.Type()))
	default:
		return fmt.Errorf("a %s can be set in the file only", v.Kind())
	}
	return nil
}
