package config

import (
	"reflect"
	"strings"
)

// Key is one key of a configuration.
type Key struct {
	Path  string // as in the file: "health.interval"
	Env   string // the environment variable that sets it: "GOSHIELD_HEALTH_INTERVAL"
	Value reflect.Value
}

// Keys are the keys of out, a pointer to a struct, in the order of its fields. A
// struct is its keys, a list or a map is one key.
func Keys(out any) []Key { return keysOf(reflect.ValueOf(out).Elem(), nil) }

func keysOf(v reflect.Value, path []string) []Key {
	var keys []Key
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, inline := keyName(f)
		if !f.IsExported() || name == "-" {
			continue
		}
		inner := append(path[:len(path):len(path)], name)
		if inline {
			inner = path
		}
		if f.Type.Kind() == reflect.Struct {
			keys = append(keys, keysOf(v.Field(i), inner)...)
			continue
		}
		name = strings.Join(inner, ".")
		keys = append(keys, Key{Path: name, Env: envOf(name), Value: v.Field(i)})
	}
	return keys
}

// Find is the key at path in out, a pointer to a struct. It finds objects, too, which Keys takes apart.
func Find(out any, path string) (Key, bool) {
	v := reflect.ValueOf(out).Elem()
	for name := range strings.SplitSeq(path, ".") {
		if v = field(v, name); !v.IsValid() {
			return Key{}, false
		}
	}
	return Key{Path: path, Env: envOf(path), Value: v}, true
}

// field is a struct's field by its name in the file; the zero Value if there is none.
func field(v reflect.Value, name string) reflect.Value {
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		own, inline := keyName(f)
		if inline {
			if found := field(v.Field(i), name); found.IsValid() {
				return found
			}
		} else if own == name && own != "-" {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

// Set gives the key the value that text stands for: what an environment variable could say, or an object, a list or a
// map in YAML or JSON. Of an object, what the text leaves out stays as it is. Errors do not name the key.
func (k Key) Set(text string) error {
	kind := k.Value.Kind()
	if kind == reflect.Struct || kind == reflect.Map || kind == reflect.Slice && strings.HasPrefix(strings.TrimSpace(text), "[") {
		return Decode(strings.NewReader(text), k.Value.Addr().Interface())
	}
	return set(k.Value, text)
}

// envOf is the environment variable of the key at path.
func envOf(path string) string {
	return EnvPrefix + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(path))
}

// keyName is the name a struct field has in the file; inline says that the field's own fields
// stand in its place.
func keyName(f reflect.StructField) (name string, inline bool) {
	name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "" {
		name = strings.ToLower(f.Name)
	}
	return name, options == "inline"
}
