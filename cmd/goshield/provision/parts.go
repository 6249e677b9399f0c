package provision

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"strings"
)

// Names of secrets: of their files in the authority's directory.
const (
	gatewaySecret = "gateway" // gateways to auth-service
	adminSecret   = "admin"
	backendSecret = "backend" // gateways to backends
	pushSecret    = "push"
	groupKey      = "group-key"
	ticketKeys    = "ticket-keys" // of TLS sessions, the same for all gateways
	grafanaSecret = "grafana-admin"

	redisAdmin       = "redis-admin"
	redisGateway     = "redis-gateway"
	redisAuth        = "redis-auth-service"
	redisExporter    = "redis-exporter"
	redisReplication = "redis-replication"
)

var secrets = []string{
	gatewaySecret, adminSecret, backendSecret, pushSecret, groupKey, ticketKeys, grafanaSecret,
	redisAdmin, redisGateway, redisAuth, redisExporter, redisReplication,
}

// part is who gets which files.
type part struct {
	name  string // of its directory
	files []file
}

// file is one of a part's files.
type file struct {
	name    string
	content func(*provisioner) ([]byte, error)
}

// original is a copy of a file of the authority's directory.
func original(name string) func(*provisioner) ([]byte, error) {
	return func(p *provisioner) ([]byte, error) { return p.values[name], nil }
}

// parts is who gets what. The gateways do not get the group key: whoever has it can be any device.
var parts = []part{
	{"lb", []file{
		{"admin", original(adminSecret)},
	}},
	{"gateway", []file{
		{"server-key.pem", original("devices/server-key.pem")},
		{"server.pem", original("devices/server.pem")},
		{"gateway", original(gatewaySecret)},
		{"push", original(pushSecret)},
		{"admin", original(adminSecret)},
		{"backend", original(backendSecret)},
		{"ticket-keys", original(ticketKeys)},
		{"redis-password", original(redisGateway)},
		{"redis-ca.pem", original("redis/ca.pem")},
	}},
	{"auth-service", []file{
		{"gateway", original(gatewaySecret)},
		{"admin", original(adminSecret)},
		{"group-key", original(groupKey)},
		{"redis-password", original(redisAuth)},
		{"redis-ca.pem", original("redis/ca.pem")},
	}},
	{"echo-backend", []file{
		{"backend", original(backendSecret)},
	}},
	{"redis", []file{
		{"users.acl", users},
		{"replication.conf", replication},
		{"server-key.pem", original("redis/server-key.pem")},
		{"server.pem", original("redis/server.pem")},
		{"ca.pem", original("redis/ca.pem")},
	}},
	{"redis-admin", []file{ // who forms the cluster
		{"password", original(redisAdmin)},
		{"ca.pem", original("redis/ca.pem")},
	}},
	{"redis-exporter", []file{
		{"passwords.json", exporterPasswords},
		{"ca.pem", original("redis/ca.pem")},
	}},
	{"operator", []file{
		{"admin", original(adminSecret)},
		{"push", original(pushSecret)},
		{"redis-password", original(redisAdmin)},
		{"redis-ca.pem", original("redis/ca.pem")},
		{"ca.pem", original("devices/ca.pem")},
	}},
	{"devices", []file{
		{"ca.pem", original("devices/ca.pem")},
		{"group-key", original(groupKey)},
	}},
	{"grafana", []file{
		{"admin-password", original(grafanaSecret)},
	}},
}

// acl is what each Redis user may do, beside logging in with a password. auth-service is the only
// writer of tokens and devices: a gateway may read what it needs of them.
var acl = []struct{ user, secret, rules string }{
	{"admin", redisAdmin, "~* &* +@all"},
	{"replication", redisReplication, "+psync +replconf +ping"},
	{"auth-service", redisAuth, "~goshield:* &goshield:* +@all -@admin -@dangerous " + clusterCommands},
	{"gateway", redisGateway, "%R~goshield:token:* %R~goshield:revoked ~goshield:node:* ~goshield:nodes ~goshield:*limit* ~goshield:*config* " +
		"&goshield:* +@all -@admin -@dangerous " + clusterCommands},
	{"exporter", redisExporter, "%R~* -@all +@connection -client|kill -client|pause -client|unpause -client|no-evict +info +config|get +latency +slowlog +cluster|info +cluster|slots " +
		"+cluster|nodes +client|list +dbsize"},
}

// clusterCommands are those of a cluster's client that "dangerous" takes away.
const clusterCommands = "+cluster|slots +cluster|shards +cluster|nodes +cluster|info +info +role"

// users is Redis's ACL file: passwords stand in it as their SHA-256.
func users(p *provisioner) ([]byte, error) {
	var b strings.Builder
	// Nobody can be the default user: it is off and has no password. Yet it may do everything, because
	// Redis replays its append-only file as that user, and drops from it, without a word, what stands
	// between MULTI and EXEC and is not allowed: all that our scripts have written.
	b.WriteString("user default off resetpass ~* &* +@all\n")
	b.WriteString("user probe on nopass resetkeys resetchannels -@all +ping\n") // the health check
	for _, u := range acl {
		if _, err := p.first(u.secret); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "user %s on resetpass resetkeys resetchannels -@all", u.user)
		for _, password := range p.lines(u.secret) {
			fmt.Fprintf(&b, " #%x", sha256.Sum256([]byte(password)))
		}
		b.WriteString(" " + u.rules + "\n")
	}
	return []byte(b.String()), nil
}

// replication is what a replica shows its primary, as lines of redis.conf.
func replication(p *provisioner) ([]byte, error) {
	password, err := p.first(redisReplication)
	return []byte("masteruser replication\nmasterauth " + password + "\n"), err
}

// exporterPasswords is redis_exporter's password file: by URL, with and without TLS.
func exporterPasswords(p *provisioner) ([]byte, error) {
	password, err := p.first(redisExporter)
	if err != nil {
		return nil, err
	}
	byURL := make(map[string]string)
	for _, host := range p.cfg.RedisHosts {
		for _, scheme := range []string{"redis", "rediss"} {
			byURL[scheme+"://"+net.JoinHostPort(host, p.cfg.RedisPort)] = password
		}
	}
	return json.MarshalIndent(byURL, "", "  ")
}
