package main

import "github.com/goshield/goshield/grafana/board"

func redis() board.Dashboard {
	return board.Dashboard{
		UID: "goshield-redis", Title: "Redis",
		Description: "Redis Cluster, by redis_exporter: who is primary, whether replicas follow, how busy and how full the nodes are.",
		Variables:   []board.Variable{instances("redis")},
		Rows: []board.Row{
			{Title: "Cluster", Panels: redisCluster()},
			{Title: "Load", Panels: redisLoad()},
			{Title: "Data", Panels: redisData()},
		},
	}
}

func redisCluster() []board.Panel {
	return []board.Panel{
		{
			Kind: board.Stat, Title: "Nodes", Unit: board.Count, Thresholds: board.Above(4, 6), Width: 6,
			Description: "Nodes that answer. The compose file has six.",
			Queries:     []board.Query{{Expr: `count(redis_up == 1)`}},
		}, {
			Kind: board.Stat, Title: "Slots served", Unit: board.Count, Thresholds: []board.Threshold{{Colour: "red"}, {Value: 16384, Colour: "green"}}, Width: 6,
			Description: "Of 16384, as the node sees it that sees fewest. Devices in the others cannot enrol or resume.",
			Queries:     []board.Query{{Expr: `min(redis_cluster_slots_ok)`}},
		}, {
			Kind: board.Stat, Title: "Primaries", Unit: board.Count, Thresholds: board.Above(2, 3), Width: 6,
			Description: "Nodes that are primary, three at least. With two of three left, a failover still has its majority.",
			Queries:     []board.Query{{Expr: `count(redis_instance_info{role="master"})`}},
		}, {
			Kind: board.Stat, Title: "Replicas that follow", Unit: board.Count, Thresholds: board.Above(1, 3), Width: 6,
			Description: "Replicas with a link to their primary: one for each, three in the compose file.",
			Queries:     []board.Query{{Expr: `sum(redis_master_link_up)`}},
		}, {
			Kind: board.Timeline, Title: "Answers", Unit: board.State, States: board.UpDown,
			Description: "Whether the exporter reached the node.",
			Queries:     []board.Query{{Expr: `redis_up{instance=~"$instance"}`, Legend: "{{instance}}"}},
		}, {
			Kind: board.Timeline, Title: "Replicas of each node", Unit: board.Count,
			States:      []board.StateColour{{Value: 0, Text: "none: a replica itself, or alone", Colour: "#8884"}, {Value: 1, Text: "one", Colour: "green"}, {Value: 2, Text: "two", Colour: "blue"}},
			Description: "A failover shows as the colour moving from one node to another.",
			Queries:     []board.Query{{Expr: `redis_connected_slaves{instance=~"$instance"}`, Legend: "{{instance}}"}},
		},
	}
}

func redisLoad() []board.Panel {
	return []board.Panel{
		{
			Title: "Commands", Unit: board.PerSecond,
			Description: "Executed a second, by node.",
			Queries:     []board.Query{{Expr: `rate(redis_commands_processed_total{instance=~"$instance"}[$__rate_interval])`, Legend: "{{instance}}"}},
		}, {
			Title: "Time in a command", Unit: board.Seconds, Thresholds: board.Below(0.001, 0.005),
			Description: "Mean time the server itself spends on one, for the five that take most time in all.",
			Queries: []board.Query{{Expr: `topk(5, sum by (cmd) (rate(redis_commands_duration_seconds_total{instance=~"$instance"}[$__rate_interval])))` +
				` / sum by (cmd) (rate(redis_commands_total{instance=~"$instance"}[$__rate_interval]))`, Legend: "{{cmd}}"}},
		}, {
			Title: "Clients", Unit: board.Count,
			Description: "Connections to each node.",
			Queries:     []board.Query{{Expr: `redis_connected_clients{instance=~"$instance"}`, Legend: "{{instance}}"}},
		}, {
			Title: "Bytes in", Unit: board.BytesRate, Width: 12,
			Description: "Received, by node.",
			Queries:     []board.Query{{Expr: `rate(redis_net_input_bytes_total{instance=~"$instance"}[$__rate_interval])`, Legend: "{{instance}}"}},
		}, {
			Title: "Bytes out", Unit: board.BytesRate, Width: 12,
			Description: "Sent, by node. A step is a replica that synchronises.",
			Queries:     []board.Query{{Expr: `rate(redis_net_output_bytes_total{instance=~"$instance"}[$__rate_interval])`, Legend: "{{instance}}"}},
		},
	}
}

func redisData() []board.Panel {
	return []board.Panel{
		{
			Title: "Memory", Unit: board.Bytes, Width: 6,
			Description: "In use by each node's data.",
			Queries:     []board.Query{{Expr: `redis_memory_used_bytes{instance=~"$instance"}`, Legend: "{{instance}}"}},
		}, {
			Title: "Memory, of its limit", Unit: board.Ratio, Thresholds: board.Below(0.7, 0.85), Width: 6,
			Description: "Of maxmemory. RedisMemoryHigh fires at 85 %; at the limit writes are refused.",
			Queries: []board.Query{{Expr: `redis_memory_used_bytes{instance=~"$instance"} / (redis_memory_max_bytes{instance=~"$instance"} > 0)`,
				Legend: "{{instance}}"}},
		}, {
			Title: "Keys", Unit: board.Count, Width: 6,
			Description: "One for each device with a token, one for each that is registered, and a few of ours. Replicas count theirs, too.",
			Queries:     []board.Query{{Expr: `sum by (instance) (redis_db_keys{instance=~"$instance"})`, Legend: "{{instance}}"}},
		}, {
			Title: "Evicted keys", Unit: board.PerSecond, Thresholds: board.Below(0.01, 1), Width: 6,
			Description: "Must be 0: an evicted token is a device that has to enrol anew.",
			Queries:     []board.Query{{Expr: `rate(redis_evicted_keys_total{instance=~"$instance"}[$__rate_interval])`, Legend: "{{instance}}"}},
		},
	}
}
