package main

import "github.com/goshield/goshield/grafana/board"

func backends() board.Dashboard {
	return board.Dashboard{
		UID: "goshield-backends", Title: "Backends & limits",
		Description: "The services behind the gateways, as the gateways see them, and what limits decided.",
		Variables:   []board.Variable{services},
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
			Queries:     []board.Query{{Expr: `max by (service, endpoint) (goshield_backend_up{service=~"$service"})`, Legend: "{{service}} {{endpoint}}"}},
		}, {
			Title: "Requests in flight", Unit: board.Count, Width: 12,
			Description: "Sent and not answered. An endpoint whose share grows is slow.",
			Queries:     []board.Query{{Expr: `sum by (service, endpoint) (goshield_backend_inflight{service=~"$service"})`, Legend: "{{service}} {{endpoint}}"}},
		}, {
			Title: "Links", Unit: board.Count, Width: 12,
			Description: "Connections that take requests: the service's links times the gateways.",
			Queries:     []board.Query{{Expr: `sum by (service, endpoint) (goshield_backend_links{service=~"$service"})`, Legend: "{{service}} {{endpoint}}"}},
		}, {
			Title: "Latency by service, 99 %", Unit: board.Seconds, Width: 12,
			Description: "From a request's frame to its answer being queued, over all gateways.",
			Queries:     []board.Query{{Expr: `histogram_quantile(0.99, sum by (service, le) (rate(goshield_gateway_request_duration_seconds_bucket{service=~"$service"}[$__rate_interval])))`, Legend: "{{service}}"}},
		},
	}
}

func backendFaults() []board.Panel {
	return []board.Panel{
		{
			Title: "Requests that failed", Unit: board.PerSecond, Stacked: true,
			Description: "backend_unavailable: no endpoint, or its link broke; backend_timeout: no answer in time; backend_error: an error or an answer that cannot be passed on.",
			Queries:     []board.Query{{Expr: `sum by (service, code) (rate(goshield_gateway_requests_total{service=~"$service", service!="unknown", code=~"backend_.*"}[$__rate_interval]))`, Legend: "{{service}}: {{code}}"}},
		}, {
			Title: "Ejections and failed look-ups", Unit: board.PerSecond,
			Description: "Endpoints taken out after failures in a row, and look-ups of a service's name that failed (the last answer stays in use).",
			Queries: []board.Query{
				{Expr: `sum(rate(goshield_backend_ejections_total{service=~"$service"}[$__rate_interval])) or vector(0)`, Legend: "ejections"},
				{Expr: `sum(rate(goshield_backend_resolve_failures_total{service=~"$service"}[$__rate_interval])) or vector(0)`, Legend: "failed look-ups"},
			},
		}, {
			Title: "Retries and dropped answers", Unit: board.PerSecond,
			Description: "Lost requests of idempotent services that were sent again; of all services, answers that came too late, or under a number that nobody waits for.",
			Queries: []board.Query{
				{Expr: `sum(rate(goshield_backend_retries_total{service=~"$service", result="sent"}[$__rate_interval])) or vector(0)`, Legend: "sent again"},
				{Expr: `sum(rate(goshield_backend_dropped_answers_total{reason="late"}[$__rate_interval])) or vector(0)`, Legend: "late answers"},
				{Expr: `sum(rate(goshield_backend_dropped_answers_total{reason="unknown"}[$__rate_interval])) or vector(0)`, Legend: "answers for nobody"},
			},
		},
	}
}

func limits() []board.Panel {
	return []board.Panel{
		{
			Title: "Decisions", Unit: board.PerSecond, Width: 12,
			Description: "What limits let through, rejected or made wait, by scope: ip at the load balancers, device and gateway at the gateways.",
			Queries:     []board.Query{{Expr: `sum by (scope, result) (rate(goshield_ratelimit_decisions_total[$__rate_interval]))`, Legend: "{{scope}}: {{result}}"}},
		}, {
			Title: "Rejected", Unit: board.Ratio, Thresholds: board.Below(0.01, 0.05), Width: 12,
			Description: "Of all decisions of a scope. RateLimitRejections fires at 5 %.",
			Queries: []board.Query{{Expr: `sum by (scope) (rate(goshield_ratelimit_decisions_total{scope!="gateway", result="reject"}[$__rate_interval]))` +
				` / sum by (scope) (rate(goshield_ratelimit_decisions_total{scope!="gateway"}[$__rate_interval]))`, Legend: "{{scope}}"}},
		},
	}
}

func echoBackend() []board.Panel {
	return []board.Panel{
		{
			Title: "Requests", Unit: board.PerSecond, Stacked: true,
			Description: "As the example backend counts them.",
			Queries:     []board.Query{{Expr: `sum by (result) (rate(goshield_echo_requests_total[$__rate_interval]))`, Legend: "{{result}}"}},
		}, {
			Title: "Pushes", Unit: board.PerSecond,
			Description: "Messages it pushed, by what became of them.",
			Queries:     []board.Query{{Expr: `sum by (result) (rate(goshield_echo_pushes_total[$__rate_interval]))`, Legend: "{{result}}"}},
		}, {
			Title: "Links", Unit: board.Count,
			Description: "That gateways have open to each replica.",
			Queries:     []board.Query{{Expr: `goshield_echo_links`, Legend: "{{instance}}"}},
		},
	}
}
