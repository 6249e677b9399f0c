package main

import "github.com/goshield/goshield/grafana/board"

func loadBalancer() board.Dashboard {
	return board.Dashboard{
		UID: "goshield-lb", Title: "Load balancer",
		Description: "Connections placed, refused and relayed, and what the load balancers think of the gateways.",
		Variables:   []board.Variable{instances("lb")},
		Rows: []board.Row{
			{Title: "Connections", Panels: lbConnections()},
			{Title: "Upstreams", Panels: lbUpstreams()},
			process("lb", 1),
		},
	}
}

func lbConnections() []board.Panel {
	return []board.Panel{
		{
			Title: "Relayed now", Unit: board.Count, Stacked: true,
			Description: "Connections by the gateway they were placed on.",
			Queries:     []board.Query{{Expr: `sum by (upstream) (goshield_lb_connections{instance=~"$instance"})`, Legend: "{{upstream}}"}},
		}, {
			Title: "New", Unit: board.PerSecond,
			Description: "Connections placed a second, by gateway. Uneven bars right after a gateway joined are slow start.",
			Queries:     []board.Query{{Expr: `sum by (upstream) (rate(goshield_lb_connections_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{upstream}}"}},
		}, {
			Title: "Refused", Unit: board.PerSecond, Thresholds: board.Below(0.1, 1),
			Description: "Connections turned away, by reason. per_ip_… are limits of one address; no_upstream and connect_failed mean that no gateway took it.",
			Queries:     []board.Query{{Expr: `sum by (reason) (rate(goshield_lb_rejected_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{reason}}"}},
		}, {
			Title: "Ended", Unit: board.PerSecond, Stacked: true,
			Description: "By what ended them. Many upstream_reset at once: a gateway died.",
			Queries:     []board.Query{{Expr: `sum by (reason) (rate(goshield_lb_closed_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{reason}}"}},
		}, {
			Title: "Bytes", Unit: board.BytesRate,
			Description: "Relayed, without PROXY headers.",
			Queries:     []board.Query{{Expr: `sum by (instance, direction) (rate(goshield_lb_bytes_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{instance}} {{direction}}"}},
		}, {
			Title: "Failures to accept", Unit: board.PerSecond, Thresholds: board.Below(0.1, 1),
			Description: "Each is followed by a pause. Most likely the process is out of file descriptors.",
			Queries:     []board.Query{{Expr: `rate(goshield_lb_accept_errors_total{instance=~"$instance"}[$__rate_interval])`, Legend: "{{instance}}"}},
		},
	}
}

func lbUpstreams() []board.Panel {
	return []board.Panel{
		{
			Kind: board.Timeline, Title: "Health checks", Unit: board.State, States: board.UpDown,
			Description: "Gateways as each load balancer's checks find them.",
			Queries:     []board.Query{{Expr: `goshield_lb_upstream_up{instance=~"$instance"}`, Legend: "{{instance}} → {{upstream}}"}},
		}, {
			Kind: board.Timeline, Title: "Virtual IP", Unit: board.State, Width: 12,
			States:      []board.StateColour{{Value: 0, Text: "standby", Colour: "#8884"}, {Value: 1, Text: "master", Colour: "green"}},
			Description: "Which load balancer had the virtual IP. Exactly one should.",
			Queries:     []board.Query{{Expr: `goshield_keepalived_master`, Legend: "{{instance}}"}},
		}, {
			Title: "Ejected", Unit: board.Count, Width: 12, Thresholds: board.Below(1, 2),
			Description: "Gateways kept out because connecting to them failed several times in a row.",
			Queries:     []board.Query{{Expr: `sum by (instance) (goshield_lb_upstream_ejected{instance=~"$instance"})`, Legend: "{{instance}}"}},
		}, {
			Title: "Time to connect", Unit: board.Seconds, Thresholds: board.Below(0.05, 0.5), Width: 12,
			Description: "To a gateway. It grows when gateways are too busy to accept.",
			Queries:     quantiles(`sum by (le) (rate(goshield_lb_connect_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval]))`),
		},
	}
}
