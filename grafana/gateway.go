package main

import "github.com/goshield/goshield/grafana/board"

func gateway() board.Dashboard {
	return board.Dashboard{
		UID: "goshield-gateway", Title: "Gateway",
		Description: "Devices' connections, their frames and requests, pushes, and the configuration in force.",
		Variables:   []board.Variable{instances("gateway"), services},
		Rows: []board.Row{
			{Title: "Connections", Panels: gatewayConnections()},
			{Title: "Requests", Panels: gatewayRequests()},
			{Title: "Frames and pushes", Panels: gatewayFrames()},
			{Title: "State", Panels: gatewayState()},
			process("gateway", 1),
		},
	}
}

func gatewayConnections() []board.Panel {
	return []board.Panel{
		{
			Title: "By state", Unit: board.Count, Stacked: true,
			Description: "handshaking until WELCOME, active while a device talks, parked while it sleeps and costs next to nothing.",
			Queries:     []board.Query{{Expr: `sum by (state) (goshield_gateway_connections{instance=~"$instance"})`, Legend: "{{state}}"}},
		}, {
			Title: "Handshakes", Unit: board.PerSecond,
			Description: "TLS handshakes by result. overloaded: over a cap; proxy: a PROXY header that is missing, broken or from nobody trusted.",
			Queries:     []board.Query{{Expr: `sum by (result) (rate(goshield_gateway_handshakes_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{result}}"}},
		}, {
			Title: "Ended", Unit: board.PerSecond, Stacked: true,
			Description: "By reason: a code of the protocol, or how the connection broke. docs/PROTOCOL.md explains the codes.",
			Queries:     []board.Query{{Expr: `sum by (reason) (rate(goshield_gateway_closed_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{reason}}"}},
		}, {
			Title: "Devices of each gateway", Unit: board.Count, Width: 24,
			Description: "Sessions, talking or asleep. Uneven after a gateway joined, until devices have reconnected.",
			Queries:     []board.Query{{Expr: `sum by (instance) (goshield_gateway_connections{instance=~"$instance", state=~"active|parked"})`, Legend: "{{instance}}"}},
		},
	}
}

func gatewayRequests() []board.Panel {
	return []board.Panel{
		{
			Title: "By result", Unit: board.PerSecond, Stacked: true,
			Description: "Answers a second by code. backend_… are faults of ours; rate_limited and no_such_service are the device's doing.",
			Queries:     []board.Query{{Expr: `sum by (code) (rate(goshield_gateway_requests_total{instance=~"$instance", service=~"$service"}[$__rate_interval]))`, Legend: "{{code}}"}},
		}, {
			Title: "By service", Unit: board.PerSecond, Stacked: true,
			Description: "Requests a second. unknown: services without a route.",
			Queries:     []board.Query{{Expr: `sum by (service) (rate(goshield_gateway_requests_total{instance=~"$instance", service=~"$service"}[$__rate_interval]))`, Legend: "{{service}}"}},
		}, {
			Title: "Latency", Unit: board.Seconds, Thresholds: []board.Threshold{{Colour: "transparent"}, {Value: 0.5, Colour: "red"}},
			Description: "From a request's frame to its answer being queued. The objective is 500 ms for 99.9 %.",
			Queries:     quantiles(`sum by (le) (rate(goshield_gateway_request_duration_seconds_bucket{instance=~"$instance", service=~"$service"}[$__rate_interval]))`),
		},
	}
}

func gatewayFrames() []board.Panel {
	return []board.Panel{
		{
			Title: "Frames in", Unit: board.PerSecond,
			Description: "From devices, by type.",
			Queries:     []board.Query{{Expr: `sum by (type) (rate(goshield_gateway_frames_total{instance=~"$instance", direction="in"}[$__rate_interval]))`, Legend: "{{type}}"}},
		}, {
			Title: "Frames out", Unit: board.PerSecond,
			Description: "To devices, by type. ERROR includes answers to single requests.",
			Queries:     []board.Query{{Expr: `sum by (type) (rate(goshield_gateway_frames_total{instance=~"$instance", direction="out"}[$__rate_interval]))`, Legend: "{{type}}"}},
		}, {
			Title: "Pushes", Unit: board.PerSecond,
			Description: "Messages to devices, where they ended. queue_full: the device, or its gateway, does not keep up; not_connected: no gateway has it; unavailable: its gateway cannot be found or reached. Each that was queued is counted again at its end: acknowledged, no_ack, or lost with its session.",
			Queries:     []board.Query{{Expr: `sum by (result) (rate(goshield_gateway_pushes_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{result}}"}},
		},
	}
}

func gatewayState() []board.Panel {
	return []board.Panel{
		{
			Title: "Configuration", Unit: board.Count, Width: 6,
			Description: "Version of the dynamic document in force. All gateways should agree within two seconds of a change; 0: the defaults.",
			Queries:     []board.Query{{Expr: `goshield_gateway_config_version{instance=~"$instance"}`, Legend: "{{instance}}"}},
		}, {
			Title: "Certificate", Unit: board.DurationOf, Width: 6,
			Thresholds:  board.Above(3*86400, 14*86400),
			Description: "Time until the certificate shown to devices expires. CertificateExpires fires at 14 and at 3 days.",
			Queries:     []board.Query{{Expr: `min(goshield_tls_certificate_expiry_seconds{instance=~"$instance"})`, Legend: "left"}},
		}, {
			Title: "Takeovers that failed", Unit: board.PerSecond, Thresholds: board.Below(0.1, 1), Width: 6,
			Description: "Older sessions on another gateway that could not be ended there. They end by their heartbeat.",
			Queries:     []board.Query{{Expr: `rate(goshield_gateway_takeovers_failed_total{instance=~"$instance"}[$__rate_interval])`, Legend: "{{instance}}"}},
		}, {
			Kind: board.Timeline, Title: "Degraded", Unit: board.State, Width: 6,
			States:      []board.StateColour{{Value: 0, Text: "fine", Colour: "green"}, {Value: 1, Text: "does without", Colour: "red"}},
			Description: "Gateways that do without a dependency.",
			Queries:     []board.Query{{Expr: `goshield_degraded{job="gateway", instance=~"$instance"}`, Legend: "{{instance}}: {{dependency}}"}},
		},
	}
}
