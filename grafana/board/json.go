package board

import (
	"encoding/json"
	"fmt"
)

// object is a JSON object; encoding/json sorts its keys, so the same dashboard is always
// the same text.
type object = map[string]any

// schemaVersion is that of Grafana 11; newer ones migrate from it.
const schemaVersion = 39

// Tag is on every dashboard: the links at the top of each lead to all that have it.
const Tag = "goshield"

// datasource is the provisioned one, of grafana/provisioning.
var datasource = object{"type": "prometheus", "uid": "prometheus"}

// Columns and heights of Grafana's grid.
const (
	columns   = 24
	rowHeight = 1
)

// size is how wide and high a kind is unless a panel says otherwise.
var size = map[Kind][2]int{Graph: {8, 8}, Stat: {4, 4}, Timeline: {12, 8}}

// JSON is the dashboard as Grafana reads it.
func (d Dashboard) JSON() ([]byte, error) {
	variables := []object{}
	for _, v := range d.Variables {
		variables = append(variables, v.object())
	}
	text, err := json.MarshalIndent(object{
		"uid":                  d.UID,
		"title":                d.Title,
		"description":          d.Description,
		"tags":                 []string{Tag},
		"schemaVersion":        schemaVersion,
		"editable":             false,
		"graphTooltip":         1, // one crosshair over all panels
		"refresh":              "10s",
		"time":                 object{"from": "now-1h", "to": "now"},
		"timezone":             "browser",
		"fiscalYearStartMonth": 0,
		"templating":           object{"list": variables},
		"annotations":          object{"list": annotations()},
		"panels":               d.panels(),
		"links": []object{{
			"type": "dashboards", "title": "GoShield", "tags": []string{Tag}, "asDropdown": false,
			"keepTime": true, "includeVars": false, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
		}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("dashboard %s: %w", d.UID, err)
	}
	return append(text, '\n'), nil
}

// panels lays the rows out, each below the one before.
func (d Dashboard) panels() []object {
	var all []object
	id, y := 0, 0
	place := func(o object, x, w, h int) {
		id++
		o["id"], o["gridPos"] = id, object{"x": x, "y": y, "w": w, "h": h}
		all = append(all, o)
	}
	for _, r := range d.Rows {
		place(object{"type": "row", "title": r.Title, "collapsed": false, "panels": []object{}}, 0, columns, rowHeight)
		y += rowHeight
		x, tallest := 0, 0
		for _, p := range r.Panels {
			w, h := p.size()
			if x+w > columns {
				x, y, tallest = 0, y+tallest, 0
			}
			place(p.object(), x, w, h)
			x, tallest = x+w, max(tallest, h)
		}
		y += tallest
	}
	return all
}

func (p Panel) kind() Kind {
	if p.Kind == "" {
		return Graph
	}
	return p.Kind
}

func (p Panel) size() (w, h int) {
	s := size[p.kind()]
	if p.Width != 0 {
		return p.Width, s[1]
	}
	return s[0], s[1]
}

func (p Panel) object() object {
	targets := []object{}
	for i, q := range p.Queries {
		targets = append(targets, object{
			"refId": string(rune('A' + i)), "datasource": datasource, "expr": q.Expr, "legendFormat": q.Legend,
			"editorMode": "code", "range": p.kind() != Stat, "instant": p.kind() == Stat,
		})
	}
	return object{
		"type": string(p.kind()), "title": p.Title, "description": p.Description, "datasource": datasource,
		"targets": targets, "options": p.options(), "transparent": false,
		"fieldConfig": object{"defaults": p.defaults(), "overrides": []object{}},
	}
}

// defaults are how values are shown.
func (p Panel) defaults() object {
	steps := []object{}
	for i, t := range p.Thresholds {
		step := object{"color": t.Colour, "value": t.Value}
		if i == 0 {
			step["value"] = nil
		}
		steps = append(steps, step)
	}
	colour := "palette-classic"
	if len(steps) == 0 {
		steps = append(steps, object{"color": "green", "value": nil})
	} else if p.kind() == Stat {
		colour = "thresholds"
	}
	o := object{
		"unit": string(p.Unit), "color": object{"mode": colour}, "custom": p.custom(),
		"thresholds": object{"mode": "absolute", "steps": steps}, "mappings": p.mappings(),
	}
	if p.Unit != DurationOf && p.kind() == Graph {
		o["min"] = 0
	}
	return o
}

func (p Panel) mappings() []object {
	if len(p.States) == 0 {
		return []object{}
	}
	states := object{}
	for i, s := range p.States {
		states[fmt.Sprint(s.Value)] = object{"index": i, "text": s.Text, "color": s.Colour}
	}
	return []object{{"type": "value", "options": states}}
}

// custom are the settings of a kind.
func (p Panel) custom() object {
	switch p.kind() {
	case Graph:
		stack, fill, limits := "none", 8, "off"
		if p.Stacked {
			stack, fill = "normal", 30
		}
		if len(p.Thresholds) > 0 {
			limits = "dashed"
		}
		return object{
			"drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "spanNulls": false,
			"stacking":        object{"mode": stack, "group": "A"},
			"thresholdsStyle": object{"mode": limits},
		}
	case Timeline:
		return object{"fillOpacity": 70, "lineWidth": 0}
	default:
		return object{}
	}
}

func (p Panel) options() object {
	switch p.kind() {
	case Stat:
		text := "auto"
		if p.ShowName {
			text = "name"
		}
		return object{
			"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false},
			"textMode":      text, "colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
		}
	case Timeline:
		return object{
			"showValue": "never", "mergeValues": true, "rowHeight": 0.8, "alignValue": "center",
			"legend":  object{"displayMode": "list", "placement": "bottom", "showLegend": false},
			"tooltip": object{"mode": "single", "sort": "none"},
		}
	default:
		return object{
			"legend":  object{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []string{}},
			"tooltip": object{"mode": "multi", "sort": "desc"},
		}
	}
}

func (v Variable) object() object {
	return object{
		"name": v.Name, "label": v.Label, "type": "query", "datasource": datasource,
		"definition": v.Values, "query": object{"query": v.Values, "refId": "variable-" + v.Name},
		"includeAll": true, "allValue": ".*", "multi": true, "current": object{"text": []string{"All"}, "value": []string{"$__all"}},
		"refresh": 2, "sort": 1, "hide": 0, "skipUrlSync": false, "options": []object{}, "regex": "",
	}
}

// An Annotation marks the times at which its query has series.
type Annotation struct {
	Name, Expr, Title, Colour string
}

// Annotations are on every dashboard.
var Annotations = []Annotation{
	{"Deploys", `count by (version) (goshield_build_info) unless count by (version) (goshield_build_info offset 1m)`, "version {{version}} runs", "blue"},
	{"Starts", `time() - process_start_time_seconds{job=~"lb|gateway|auth-service|echo-backend"} < 20`, "{{job}} {{instance}} started", "light-blue"},
	{"Failovers", `goshield_keepalived_master == 1 unless on (instance) goshield_keepalived_master offset 30s == 1`, "the virtual IP moved to {{instance}}", "purple"},
	{"Critical alerts", `ALERTS{alertstate="firing", severity="critical"}`, "{{alertname}}", "red"},
}

func annotations() []object {
	list := []object{{
		"builtIn": 1, "name": "Annotations & Alerts", "type": "dashboard", "enable": true, "hide": true, "iconColor": "rgba(0, 211, 255, 1)",
		"datasource": object{"type": "grafana", "uid": "-- Grafana --"},
	}}
	for _, a := range Annotations {
		list = append(list, object{
			"name": a.Name, "expr": a.Expr, "titleFormat": a.Title, "textFormat": "", "tagKeys": "", "iconColor": a.Colour,
			"enable": true, "step": "10s", "datasource": datasource, "useValueForTime": false,
		})
	}
	return list
}
