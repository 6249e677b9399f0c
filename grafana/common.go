package main

import "github.com/goshield/goshield/grafana/board"

// instances is the choice of replicas, of one part or of several: a|b.
func instances(jobs string) board.Variable {
	return board.Variable{Name: "instance", Label: "Instance", Values: `label_values(up{job=~"` + jobs + `"}, instance)`}
}

// services is the choice of services behind the gateways.
var services = board.Variable{Name: "service", Label: "Service", Values: `label_values(goshield_gateway_requests_total{service!="unknown"}, service)`}

// process is the row about a part's processes themselves, to each of which docker-compose.yml gives so many cores. Its
// queries use the variable instance.
func process(job string, cores float64) board.Row {
	of := `{job="` + job + `", instance=~"$instance"}`
	return board.Row{Title: "Process", Panels: []board.Panel{
		{
			Title: "CPU", Unit: board.Cores, Thresholds: board.Below(0.6*cores, 0.9*cores),
			Description: "Cores in use by each process. The lines are at 60 % and 90 % of what the compose file lets it have.",
			Queries:     []board.Query{{Expr: `rate(process_cpu_seconds_total` + of + `[$__rate_interval])`, Legend: "{{instance}}"}},
		}, {
			Title: "Memory", Unit: board.Bytes,
			Description: "Resident memory, and what of it is live heap.",
			Queries: []board.Query{
				{Expr: `process_resident_memory_bytes` + of, Legend: "{{instance}} resident"},
				{Expr: `go_memstats_heap_inuse_bytes` + of, Legend: "{{instance}} heap"},
			},
		}, {
			Title: "Memory, of its limit", Unit: board.Ratio, Thresholds: board.Below(0.7, 0.9),
			Description: "Resident memory, of GOMEMLIMIT. MemoryHigh fires at 90 %.",
			Queries:     []board.Query{{Expr: `process_resident_memory_bytes` + of + ` / (go_gc_gomemlimit_bytes` + of + ` < 1e15)`, Legend: "{{instance}}"}},
		}, {
			Title: "File descriptors", Unit: board.Ratio, Thresholds: board.Below(0.8, 0.95), Width: 12,
			Description: "In use, of what the process may open. FileDescriptorsLow fires at 80 %.",
			Queries:     []board.Query{{Expr: `process_open_fds` + of + ` / process_max_fds` + of, Legend: "{{instance}}"}},
		}, {
			Title: "Goroutines", Unit: board.Count, Width: 12,
			Description: "They follow the connections that talk; growth without traffic is a leak.",
			Queries:     []board.Query{{Expr: `go_goroutines` + of, Legend: "{{instance}}"}},
		},
	}}
}

// quantiles are queries for the median, the 99th and the 99.9th percentile of a histogram, given by
// the sum of its buckets' rates by (le).
func quantiles(buckets string) []board.Query {
	return []board.Query{
		{Expr: `histogram_quantile(0.5, ` + buckets + `)`, Legend: "median"},
		{Expr: `histogram_quantile(0.99, ` + buckets + `)`, Legend: "99 %"},
		{Expr: `histogram_quantile(0.999, ` + buckets + `)`, Legend: "99.9 %"},
	}
}
