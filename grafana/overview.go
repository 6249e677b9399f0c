package main

import "github.com/goshield/goshield/grafana/board"

// parts are those that are Go processes of ours.
const parts = "lb|gateway|auth-service|echo-backend"

// chosen are the replicas of them that the variable instance names.
const chosen = `{job=~"` + parts + `", instance=~"$instance"}`

func overview() board.Dashboard {
	return board.Dashboard{
		UID: "goshield-overview", Title: "Overview",
		Description: "The whole path of a request: latency, traffic, errors and saturation, and who is there. The row Now is always about all replicas.",
		Variables:   []board.Variable{services, instances(parts)},
		Rows: []board.Row{
			{Title: "Now", Panels: overviewNow()},
			{Title: "Traffic and latency", Panels: overviewTraffic()},
			{Title: "Errors", Panels: overviewErrors()},
			{Title: "Who is there", Panels: overviewParts()},
			{Title: "Saturation", Panels: overviewSaturation()},
		},
	}
}

func overviewNow() []board.Panel {
	return []board.Panel{
		{
			Kind: board.Stat, Title: "Devices", Unit: board.Count,
			Description: "Devices with a session, talking or asleep.",
			Queries:     []board.Query{{Expr: `sum(goshield_gateway_connections{state=~"active|parked"})`}},
		}, {
			Kind: board.Stat, Title: "Requests", Unit: board.PerSecond,
			Description: "Requests answered a second, whatever the answer.",
			Queries:     []board.Query{{Expr: `sum(rate(goshield_gateway_requests_total{service=~"$service"}[1m]))`}},
		}, {
			Kind: board.Stat, Title: "Failing", Unit: board.Ratio, Thresholds: board.Below(0.001, 0.01),
			Description: "Requests that failed by a fault of ours within five minutes. The objective is 0.1 % over 30 days.",
			Queries:     []board.Query{{Expr: `max(service:goshield_requests:error_ratio_rate5m{service=~"$service"})`}},
		}, {
			Kind: board.Stat, Title: "Latency, 99 %", Unit: board.Seconds, Thresholds: board.Below(0.1, 0.5),
			Description: "99 of 100 requests are answered within this time, from frame to answer, in the gateway.",
			Queries:     []board.Query{{Expr: `histogram_quantile(0.99, sum by (le) (service_le:goshield_request_duration_seconds_bucket:rate1m{service=~"$service"}))`}},
		}, {
			Kind: board.Stat, Title: "Virtual IP", Unit: board.Count, ShowName: true,
			Description: "The load balancer that has the virtual IP. None, or two, is an alert.",
			Queries:     []board.Query{{Expr: `goshield_keepalived_master == 1`, Legend: "{{instance}}"}},
		}, {
			Kind: board.Stat, Title: "Alerts", Unit: board.Count, Thresholds: board.Below(1, 5),
			Description: "Alerts that fire, beside the Watchdog, without which this is empty: alerting does not work then. docs/OPERATIONS.md has an entry for each.",
			Queries:     []board.Query{{Expr: `count(ALERTS{alertstate="firing"}) - count(ALERTS{alertstate="firing", alertname="Watchdog"})`}},
		},
	}
}

func overviewTraffic() []board.Panel {
	return []board.Panel{
		{
			Title: "Requests by result", Unit: board.PerSecond, Stacked: true, Width: 12,
			Description: "Answers a second by their code. Codes that begin with backend_ are faults of ours.",
			Queries:     []board.Query{{Expr: `sum by (code) (rate(goshield_gateway_requests_total{instance=~"$instance", service=~"$service"}[$__rate_interval]))`, Legend: "{{code}}"}},
		}, {
			Title: "Latency", Unit: board.Seconds, Thresholds: []board.Threshold{{Colour: "transparent"}, {Value: 0.5, Colour: "red"}}, Width: 12,
			Description: "From a request's frame to its answer being queued, over all gateways chosen. The objective is 500 ms for 99.9 %.",
			Queries:     quantiles(`sum by (le) (rate(goshield_gateway_request_duration_seconds_bucket{instance=~"$instance", service=~"$service"}[$__rate_interval]))`),
		}, {
			Title: "Connections of devices", Unit: board.Count, Stacked: true,
			Description: "By state: handshaking until they are welcome, active while they talk, parked while they sleep.",
			Queries:     []board.Query{{Expr: `sum by (state) (goshield_gateway_connections{instance=~"$instance"})`, Legend: "{{state}}"}},
		}, {
			Title: "New connections", Unit: board.PerSecond,
			Description: "Connections a second that the load balancers placed. A jump is a reconnect storm.",
			Queries:     []board.Query{{Expr: `sum by (listener) (rate(goshield_lb_connections_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{listener}}"}},
		}, {
			Title: "Bytes", Unit: board.BytesRate,
			Description: "Relayed by the load balancers.",
			Queries:     []board.Query{{Expr: `sum by (direction) (rate(goshield_lb_bytes_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{direction}}"}},
		},
	}
}

func overviewErrors() []board.Panel {
	return []board.Panel{
		{
			Title: "Budget burn, errors", Unit: board.Count, Thresholds: board.Below(6, 14.4),
			Description: "How many times faster than allowed the error budget is being spent. At 1 it lasts 30 days; above 14.4 for an hour somebody is called.",
			Queries: []board.Query{
				{Expr: `service:goshield_requests:error_ratio_rate5m{service=~"$service"} / 0.001`, Legend: "{{service}} 5 min"},
				{Expr: `service:goshield_requests:error_ratio_rate1h{service=~"$service"} / 0.001`, Legend: "{{service}} 1 h"},
			},
		}, {
			Title: "Budget burn, latency", Unit: board.Count, Thresholds: board.Below(6, 14.4),
			Description: "The same for requests that take longer than 500 ms.",
			Queries: []board.Query{
				{Expr: `service:goshield_requests:slow_ratio_rate5m{service=~"$service"} / 0.001`, Legend: "{{service}} 5 min"},
				{Expr: `service:goshield_requests:slow_ratio_rate1h{service=~"$service"} / 0.001`, Legend: "{{service}} 1 h"},
			},
		}, {
			Title: "Refused", Unit: board.PerSecond, Thresholds: board.Below(0.1, 1),
			Description: "Connections that load balancers and gateways turned away, and authentications that were refused, a second.",
			Queries: []board.Query{
				{Expr: `sum(rate(goshield_lb_rejected_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "load balancers"},
				{Expr: `sum(rate(goshield_ratelimit_decisions_total{instance=~"$instance", scope="gateway", result="reject"}[$__rate_interval]))`, Legend: "gateways"},
				{Expr: `sum(rate(goshield_auth_operations_total{instance=~"$instance", operation=~"issue|verify", result!~"ok|promoted|previous"}[$__rate_interval]))`, Legend: "authentication"},
			},
		},
	}
}

func overviewParts() []board.Panel {
	return []board.Panel{
		{
			Title: "Replicas", Unit: board.Count, Thresholds: board.Above(1, 2),
			Description: "Replicas of each part that answer. With one, its loss is that of the part; below one, the part is gone.",
			Queries:     []board.Query{{Expr: `count by (job) (up{job=~"lb|gateway|auth-service|echo-backend"} == 1) or count by (job) (redis_up == 1)`, Legend: "{{job}}"}},
		}, {
			Kind: board.Timeline, Title: "Virtual IP", Unit: board.State, Width: 8,
			States:      []board.StateColour{{Value: 0, Text: "standby", Colour: "#8884"}, {Value: 1, Text: "master", Colour: "green"}},
			Description: "Which load balancer had the virtual IP. Exactly one should.",
			Queries:     []board.Query{{Expr: `goshield_keepalived_master{instance=~"$instance"}`, Legend: "{{instance}}"}},
		}, {
			Kind: board.Timeline, Title: "Degraded", Unit: board.State, Width: 8,
			States:      []board.StateColour{{Value: 0, Text: "fine", Colour: "green"}, {Value: 1, Text: "does without", Colour: "red"}},
			Description: "Parts that do without one of their dependencies.",
			Queries:     []board.Query{{Expr: `max by (job, dependency) (goshield_degraded{instance=~"$instance"})`, Legend: "{{job}}: {{dependency}}"}},
		},
	}
}

func overviewSaturation() []board.Panel {
	return []board.Panel{
		{
			Title: "CPU", Unit: board.Cores, Thresholds: board.Below(0.6, 0.9),
			Description: "Cores in use by the busiest process of each part. The compose file lets load balancers and gateways have one each, the others half of one.",
			Queries:     []board.Query{{Expr: `max by (job) (rate(process_cpu_seconds_total` + chosen + `[$__rate_interval]))`, Legend: "{{job}}"}},
		}, {
			Title: "Memory", Unit: board.Ratio, Thresholds: board.Below(0.7, 0.9),
			Description: "Resident memory, of GOMEMLIMIT; the worst process of each part. MemoryHigh fires at 90 %.",
			Queries:     []board.Query{{Expr: `max by (job) (process_resident_memory_bytes` + chosen + ` / (go_gc_gomemlimit_bytes < 1e15))`, Legend: "{{job}}"}},
		}, {
			Title: "File descriptors", Unit: board.Ratio, Thresholds: board.Below(0.8, 0.95),
			Description: "In use, of what a process may open; the worst process of each part.",
			Queries:     []board.Query{{Expr: `max by (job) (process_open_fds` + chosen + ` / process_max_fds)`, Legend: "{{job}}"}},
		},
	}
}
