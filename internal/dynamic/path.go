package dynamic

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/goshield/goshield/internal/config"
)

// The document by its keys: "heartbeat.interval", "services.echo.timeout", "services.echo", "services". A service's
// name may have dots in it.

const servicesKey = "services"

// errNoKey is what there is no key for.
var errNoKey = errors.New("there is no such key (docs/CONFIGURATION.md lists them)")

// Read reads a document in YAML or JSON on top of Default, refuses keys that nobody knows, and validates it.
func Read(r io.Reader) (Document, error) {
	doc := Default()
	if err := config.Decode(r, &doc); err != nil {
		return Document{}, err
	}
	return doc, doc.Validate()
}

// Get returns the value at path, of the type that the document has there. The error is a *config.Error.
func (d *Document) Get(path string) (any, error) {
	rest, isService := strings.CutPrefix(path, servicesKey+".")
	if !isService {
		k, ok := config.Find(d, path)
		if !ok {
			return nil, &config.Error{Key: path, Err: errNoKey}
		}
		return k.Value.Interface(), nil
	}
	name, key := d.splitService(rest)
	s, ok := d.Services[name]
	if !ok {
		return nil, config.Errorf(path, "there is no such service, and no such key of one")
	}
	if key == "" {
		return s, nil
	}
	k, _ := config.Find(&s, key)
	return k.Value.Interface(), nil
}

// Set returns a valid document that differs in what is at path: text is the value as an environment variable has it, or in
// YAML or JSON. An object keeps what the text does not name; a service, and "services", is replaced as a whole. The
// text "null" removes a service. The document itself stays as it is. The error is a *config.Error.
func (d *Document) Set(path, text string) (Document, error) {
	next := *d
	next.Services = maps.Clone(d.Services)
	if err := next.set(path, text); err != nil {
		if errors.As(err, new(*config.Error)) {
			return Document{}, err
		}
		return Document{}, &config.Error{Key: path, Err: err}
	}
	return next, next.Validate()
}

func (d *Document) set(path, text string) error {
	rest, isService := strings.CutPrefix(path, servicesKey+".")
	if isService {
		return d.setService(rest, text)
	}
	k, ok := config.Find(d, path)
	if !ok {
		return errNoKey
	}
	if path == servicesKey {
		d.Services = map[string]Service{}
	}
	return k.Set(text)
}

func (d *Document) setService(rest, text string) error {
	name, key := d.splitService(rest)
	s, exists := d.Services[name]
	if key != "" {
		k, _ := config.Find(&s, key)
		if err := k.Set(text); err != nil {
			return err
		}
		d.put(name, s)
		return nil
	}
	switch text = strings.TrimSpace(text); {
	case text == "null" && exists:
		delete(d.Services, name)
		return nil
	case text == "null":
		return errors.New("there is no such service")
	case !strings.HasPrefix(text, "{"):
		return fmt.Errorf(`%w; a service is set as {"endpoints": ["host:port"]}`, errNoKey)
	}
	s = Service{}
	if err := config.Decode(strings.NewReader(text), &s); err != nil {
		return err
	}
	d.put(name, s)
	return nil
}

func (d *Document) put(name string, s Service) {
	if d.Services == nil {
		d.Services = map[string]Service{}
	}
	d.Services[name] = s
}

// splitService tells a service's name from the key behind it; key is empty for the service itself.
func (d *Document) splitService(rest string) (name, key string) {
	if _, ok := d.Services[rest]; ok {
		return rest, ""
	}
	keys := []string{"limit"}
	for _, k := range config.Keys(&Service{}) {
		keys = append(keys, k.Path)
	}
	for _, k := range keys {
		if name, ok := strings.CutSuffix(rest, "."+k); ok {
			return name, k
		}
	}
	return rest, ""
}

// Change is a key that two documents differ in. A value is as Set takes it; empty: it is not there.
type Change struct {
	Path string `json:"path"`
	Old  string `json:"old"`
	New  string `json:"new"`
}

// Diff lists what differs, by key.
func Diff(from, to Document) []Change {
	before, after := from.flatten(), to.flatten()
	paths := slices.Sorted(maps.Keys(before))
	for path := range after {
		if _, both := before[path]; !both {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	var changes []Change
	for _, path := range paths {
		if before[path] != after[path] {
			changes = append(changes, Change{Path: path, Old: before[path], New: after[path]})
		}
	}
	return changes
}

// flatten is every key that is no object, with its value as text.
func (d *Document) flatten() map[string]string {
	all := map[string]string{}
	for _, k := range config.Keys(d) {
		if k.Path != servicesKey {
			all[k.Path] = Text(k.Value.Interface())
		}
	}
	for name, s := range d.Services {
		for _, k := range config.Keys(&s) {
			if (k.Path == "endpoints" || k.Path == "dns") && k.Value.IsZero() {
				continue
			}
			all[servicesKey+"."+name+"."+k.Path] = Text(k.Value.Interface())
		}
	}
	return all
}

// Text is a value of the document as Set takes it: plain, or JSON for lists and objects.
func Text(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v) // a number that JSON does not know; Validate refuses it
	}
	var text string
	if json.Unmarshal(data, &text) == nil {
		return text
	}
	return string(data)
}
