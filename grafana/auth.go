package main

import "github.com/goshield/goshield/grafana/board"

func auth() board.Dashboard {
	return board.Dashboard{
		UID: "goshield-auth", Title: "Auth & tokens",
		Description: "Tokens issued, verified, rotated and revoked, and those who were refused.",
		Variables:   []board.Variable{instances("auth-service")},
		Rows: []board.Row{
			{Title: "Now", Panels: authNow()},
			{Title: "Operations", Panels: authOperations()},
			process("auth-service", 0.5),
		},
	}
}

func authNow() []board.Panel {
	return []board.Panel{
		{
			Kind: board.Stat, Title: "Tokens shown again", Unit: board.Count, Thresholds: []board.Threshold{{Colour: "green"}, {Value: 0.5, Colour: "red"}}, Width: 6,
			Description: "Replaced tokens that somebody showed within an hour: a stolen token, or a cloned device. TokenReused fires at the first.",
			Queries:     []board.Query{{Expr: `sum(increase(goshield_auth_operations_total{instance=~"$instance", result="token_reused"}[1h]))`}},
		}, {
			Kind: board.Stat, Title: "Refused", Unit: board.Ratio, Thresholds: board.Below(0.05, 0.1), Width: 6,
			Description: "Enrolments and resumptions that were refused within five minutes, of all. AuthFailures fires at 10 %.",
			Queries: []board.Query{{Expr: `sum(rate(goshield_auth_operations_total{instance=~"$instance", operation=~"issue|verify", result!~"ok|promoted|previous|auth_unavailable"}[5m]))` +
				` / sum(rate(goshield_auth_operations_total{instance=~"$instance", operation=~"issue|verify"}[5m]))`}},
		}, {
			Kind: board.Stat, Title: "Unconfirmed writes", Unit: board.Count, Thresholds: board.Below(1, 10), Width: 6,
			Description: "Writes that no replica of Redis confirmed in time, within an hour. WritesUnconfirmed fires when they go on.",
			Queries:     []board.Query{{Expr: `sum(increase(goshield_auth_unconfirmed_total{instance=~"$instance"}[1h]))`}},
		}, {
			Kind: board.Stat, Title: "Open enrolment", Unit: board.State, Thresholds: []board.Threshold{{Colour: "green"}, {Value: 1, Colour: "orange"}}, Width: 6,
			Description: "On while any well-formed client_id can enrol: for trials only.",
			Queries:     []board.Query{{Expr: `max(goshield_auth_enrolment_open{instance=~"$instance"})`}},
		},
	}
}

func authOperations() []board.Panel {
	return []board.Panel{
		{
			Title: "By operation", Unit: board.PerSecond, Stacked: true,
			Description: "Calls a second. issue: enrolment; verify: resumption, and tokens a gateway does not know yet; rotate: from heartbeats.",
			Queries:     []board.Query{{Expr: `sum by (operation) (rate(goshield_auth_operations_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{operation}}"}},
		}, {
			Title: "Refused and failed", Unit: board.PerSecond, Thresholds: board.Below(0.1, 1),
			Description: "Calls that did not succeed, by result. auth_unavailable: Redis did not answer or confirm.",
			Queries:     []board.Query{{Expr: `sum by (operation, result) (rate(goshield_auth_operations_total{instance=~"$instance", result!~"ok|promoted|previous"}[$__rate_interval]))`, Legend: "{{operation}}: {{result}}"}},
		}, {
			Title: "Time, 99 %", Unit: board.Seconds, Thresholds: board.Below(0.05, 0.2),
			Description: "99 of 100 calls are answered within this time. Those that write wait for a replica of Redis.",
			Queries:     []board.Query{{Expr: `histogram_quantile(0.99, sum by (operation, le) (rate(goshield_auth_operation_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, Legend: "{{operation}}"}},
		}, {
			Title: "Rotation", Unit: board.PerSecond,
			Description: "Successors handed out, and successors that came into use. The second follows the first within a heartbeat or a request.",
			Queries: []board.Query{
				{Expr: `sum(rate(goshield_auth_operations_total{instance=~"$instance", operation="rotate", result="ok"}[$__rate_interval]))`, Legend: "handed out"},
				{Expr: `sum(rate(goshield_auth_operations_total{instance=~"$instance", operation="verify", result="promoted"}[$__rate_interval]))`, Legend: "in use"},
			},
		}, {
			Title: "Unconfirmed writes", Unit: board.PerSecond, Thresholds: board.Below(0.1, 1),
			Description: "By operation. Rotations are not handed out then, revocations answered 503, enrolments go through.",
			Queries:     []board.Query{{Expr: `sum by (operation) (rate(goshield_auth_unconfirmed_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{operation}}"}},
		}, {
			Kind: board.Timeline, Title: "Degraded", Unit: board.State, Width: 8,
			States:      []board.StateColour{{Value: 0, Text: "fine", Colour: "green"}, {Value: 1, Text: "does without", Colour: "red"}},
			Description: "auth-services that do without Redis, and gateways that do without auth-service.",
			Queries:     []board.Query{{Expr: `goshield_degraded{job="auth-service"} or goshield_degraded{job="gateway", dependency="auth"}`, Legend: "{{job}} {{instance}}: {{dependency}}"}},
		},
	}
}
