package main

import "github.com/goshield/goshield/grafana/board"

// some are thresholds for what there must be at least one of.
var some = []board.Threshold{{Colour: "red"}, {Value: 1, Colour: "green"}}

func backends() board.Dashboard {
	return board.Dashboard{
		UID: "goshield-backends", Title: "Backends & limits",
		Description: "The services behind the gateways, as the gateways see them, and what limits decided.",
		Variables: []board.Variable{
			services, instances("gateway|lb"),
			{Name: "backend", Label: "Echo backend", Values: `label_values(up{job="echo-backend"}, instance)`},
		},
		Rows: []board.Row{
			{Title: "Endpoints", Panels: backendEndpoints()},
			{Title: "Faults", Panels: backendFaults()},
			{Title: "Limits", Panels: limits()},
			{Title: "echo-backend", Panels: echoBackend()},
		},
	}
}

func backendEndpoints() []board.Panel {
	return []board.Panel{
		{
			Kind: board.Timeline, Title: "Takes requests", Unit: board.State, Width: 12,
			States:      []board.StateColour{{Value: 0, Text: "by no gateway", Colour: "red"}, {Value: 1, Text: "yes", Colour: "green"}},
			Description: "Endpoints to which at least one gateway may send.",
			Queries:     []board.Query{{Expr: `max by (service, endpoint) (goshield_backend_up{instance=~"$instance", service=~"$service"})`, Legend: "{{service}} {{endpoint}}"}},
		}, {
			Title: "Requests in flight", Unit: board.Count, Width: 12,
			Description: "Sent and not answered. An endpoint whose share grows is slow.",
			Queries:     []board.Query{{Expr: `sum by (service, endpoint) (goshield_backend_inflight{instance=~"$instance", service=~"$service"})`, Legend: "{{service}} {{endpoint}}"}},
		}, {
			Title: "Links", Unit: board.Count, Thresholds: some, Width: 12,
			Description: "Connections that take requests: the service's links times the gateways.",
			Queries:     []board.Query{{Expr: `sum by (service, endpoint) (goshield_backend_links{instance=~"$instance", service=~"$service"})`, Legend: "{{service}} {{endpoint}}"}},
		}, {
			Title: "Latency by service, 99 %", Unit: board.Seconds, Thresholds: board.Below(0.1, 0.5), Width: 12,
			Description: "From a request's frame to its answer being queued, over all gateways chosen. The objective is 500 ms for 99.9 %.",
			Queries:     []board.Query{{Expr: `histogram_quantile(0.99, sum by (service, le) (rate(goshield_gateway_request_duration_seconds_bucket{instance=~"$instance", service=~"$service"}[$__rate_interval])))`, Legend: "{{service}}"}},
		},
	}
}

func backendFaults() []board.Panel {
	return []board.Panel{
		{
			Title: "Requests that failed", Unit: board.PerSecond, Thresholds: board.Below(0.1, 1), Stacked: true,
			Description: "backend_unavailable: no endpoint, or its link broke; backend_timeout: no answer in time; backend_error: an error or an answer that cannot be passed on.",
			Queries:     []board.Query{{Expr: `sum by (service, code) (rate(goshield_gateway_requests_total{instance=~"$instance", service=~"$service", service!="unknown", code=~"backend_.*"}[$__rate_interval]))`, Legend: "{{service}}: {{code}}"}},
		}, {
			Title: "Ejections, refusals and failed look-ups", Unit: board.PerSecond, Thresholds: board.Below(0.01, 0.1),
			Description: "Endpoints taken out after failures in a row; requests that an endpoint had no room for (in_flight: as many unanswered as it takes; queue: as many bytes waiting for it); look-ups of a service's name that failed (the last answer stays in use).",
			Queries: []board.Query{
				{Expr: `sum(rate(goshield_backend_ejections_total{instance=~"$instance", service=~"$service"}[$__rate_interval]))`, Legend: "ejections"},
				{Expr: `sum by (service, endpoint, reason) (rate(goshield_backend_refusals_total{instance=~"$instance", service=~"$service"}[$__rate_interval]))`, Legend: "{{service}} {{endpoint}}: refused, {{reason}}"},
				{Expr: `sum(rate(goshield_backend_resolve_failures_total{instance=~"$instance", service=~"$service"}[$__rate_interval]))`, Legend: "failed look-ups"},
			},
		}, {
			Title: "Retries and dropped answers", Unit: board.PerSecond, Thresholds: board.Below(0.1, 1),
			Description: "Lost requests of idempotent services that were sent again; of all services, answers that came too late, or under a number that nobody waits for.",
			Queries: []board.Query{
				{Expr: `sum(rate(goshield_backend_retries_total{instance=~"$instance", service=~"$service", result="sent"}[$__rate_interval]))`, Legend: "sent again"},
				{Expr: `sum(rate(goshield_backend_dropped_answers_total{instance=~"$instance", reason="late"}[$__rate_interval]))`, Legend: "late answers"},
				{Expr: `sum(rate(goshield_backend_dropped_answers_total{instance=~"$instance", reason="unknown"}[$__rate_interval]))`, Legend: "answers for nobody"},
			},
		},
	}
}

func limits() []board.Panel {
	return []board.Panel{
		{
			Title: "Decisions", Unit: board.PerSecond, Width: 12,
			Description: "What limits let through, rejected or made wait, by scope: ip at the load balancers, device and gateway at the gateways.",
			Queries:     []board.Query{{Expr: `sum by (scope, result) (rate(goshield_ratelimit_decisions_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{scope}}: {{result}}"}},
		}, {
			Title: "Rejected", Unit: board.Ratio, Thresholds: board.Below(0.01, 0.05), Width: 12,
			Description: "Of all decisions of a scope. RateLimitRejections fires at 5 %.",
			Queries: []board.Query{{Expr: `sum by (scope) (rate(goshield_ratelimit_decisions_total{instance=~"$instance", scope!="gateway", result="reject"}[$__rate_interval]))` +
				` / sum by (scope) (rate(goshield_ratelimit_decisions_total{instance=~"$instance", scope!="gateway"}[$__rate_interval]))`, Legend: "{{scope}}"}},
		},
	}
}

func echoBackend() []board.Panel {
	return []board.Panel{
		{
			Title: "Requests", Unit: board.PerSecond, Stacked: true,
			Description: "As the example backend counts them.",
			Queries:     []board.Query{{Expr: `sum by (result) (rate(goshield_echo_requests_total{instance=~"$backend"}[$__rate_interval]))`, Legend: "{{result}}"}},
		}, {
			Title: "Pushes", Unit: board.PerSecond,
			Description: "Messages it pushed, by what became of them.",
			Queries:     []board.Query{{Expr: `sum by (result) (rate(goshield_echo_pushes_total{instance=~"$backend"}[$__rate_interval]))`, Legend: "{{result}}"}},
		}, {
			Title: "Links", Unit: board.Count, Thresholds: some,
			Description: "That gateways have open to each replica.",
			Queries:     []board.Query{{Expr: `goshield_echo_links{instance=~"$backend"}`, Legend: "{{instance}}"}},
		},
	}
}
