package promql

import (
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v4"
)

// A Rule is one recording or alerting rule of prometheus/rules.
type Rule struct {
	Record      string            `yaml:"record"`
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// ReadRules reads all rules of the repository whose root is given, in the order of files and lines.
func ReadRules(root string) ([]Rule, error) {
	files, err := filepath.Glob(filepath.Join(root, "prometheus/rules/*.yml"))
	if err != nil {
		return nil, err
	}
	var rules []Rule
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var doc struct {
			Groups []struct {
				Rules []Rule `yaml:"rules"`
			} `yaml:"groups"`
		}
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, g := range doc.Groups {
			rules = append(rules, g.Rules...)
		}
	}
	if len(rules) == 0 {
		return nil, fmt.Errorf("no rules in %s/prometheus/rules", root)
	}
	return rules, nil
}
