//go:build linux

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// contestant is a program that relays TCP connections. Each is configured as
// its own documentation advises for that, without logs.
type contestant struct {
	name        string
	descriptors int    // for each relayed connection
	ours        string // the binary of GoShield that it is; "" for others
	// behind starts what it needs, and says in the placement where that is. What it has started
	// is to be stopped also if it fails.
	behind func(context.Context, *placement) ([]stopper, error)
	start  func(placement) (*process, error)
	try    func(ctx context.Context, address string) error // whether it can be used
}

// placement is where a contestant is put and what it may use.
type placement struct {
	dir      string // for its files
	threads  int
	cores    cores
	others   cores  // for what is behind it
	listen   string // host:port, as the others
	admin    string // of ours, where it is of interest
	upstream string
	backends []string // of a gateway, in place of one upstream
	protocol string   // in which a gateway reaches them
	version  byte     // of the device protocol, for the load; 0: none
	auth     string
	redis    string
	binaries string // directory of GoShield's
	log      string // file for what ours says; "": only the last of it is kept
}

// Names of contestants. Ratios are against the first two.
const (
	haproxyName = "haproxy"
	nginxName   = "nginx"
	copyName    = "io.Copy"
	lbName      = "lb"
)

// relays are measured with small messages, bulkRelays with streams.
var (
	relays = []contestant{
		{haproxyName, 2, "", behindEcho, func(p placement) (*process, error) { return startHAProxy(p, 9700, "") }, tryRelay},
		{nginxName, 2, "", behindEcho, func(p placement) (*process, error) { return startNginx(p, "") }, tryRelay},
		{lbName, 2, "lb", behindEcho, startLB, tryRelay},
		{copyName, 6, "", behindEcho, startCopy, tryRelay}, // two more for the pipe of each direction: splice(2)
	}
	bulkRelays = []contestant{
		{haproxyName, 6, "", behindSource, func(p placement) (*process, error) { return startHAProxy(p, 2000, "option splice-auto") }, tryRelay},
		{nginxName, 2, "", behindSource, func(p placement) (*process, error) { return startNginx(p, "proxy_buffer_size 64k;") }, tryRelay},
		{lbName, 6, "lb", behindSource, startLB, tryRelay},
		{copyName, 6, "", behindSource, startCopy, tryRelay},
	}
)

// behindEcho is an echo server, behindSource one that streams.
func behindEcho(ctx context.Context, p *placement) ([]stopper, error) {
	return behindRole(ctx, p, "echo-role")
}

func behindSource(ctx context.Context, p *placement) ([]stopper, error) {
	return behindRole(ctx, p, "source-role")
}

func behindRole(ctx context.Context, p *placement, name string) ([]stopper, error) {
	server, err := startRole("the server behind", nil, p.others, name)
	if err != nil {
		return nil, err
	}
	var answer serverAnswer
	err = server.ask(ctx, startTimeout, nil, &answer)
	p.upstream = answer.Address
	return []stopper{server}, err
}

// startHAProxy: threads in one process, connections spread over them by the
// kernel. An option is set for all connections: "option splice-auto" pays for
// bulk only, and wants descriptors for pipes beside those of most connections.
func startHAProxy(p placement, most int, option string) (*process, error) {
	config, err := p.write("haproxy.cfg", `
global
    nbthread `+strconv.Itoa(p.threads)+`
    maxconn `+strconv.Itoa(most)+`
defaults
    mode tcp
    maxconn `+strconv.Itoa(most)+`
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    `+option+`
listen relay
    bind `+p.listen+` shards by-thread
    server echo `+p.upstream+`
`)
	if err != nil {
		return nil, err
	}
	return start(haproxyName, exec.Command("haproxy", "-db", "-f", config), p.cores)
}

// startNginx: one worker a thread, each with a listening socket of its own.
func startNginx(p placement, directive string) (*process, error) {
	module := ""
	if dynamic := "/usr/lib/nginx/modules/ngx_stream_module.so"; exists(dynamic) {
		module = "load_module " + dynamic + ";"
	}
	config, err := p.write("nginx.conf", module+`
daemon off;
worker_processes `+strconv.Itoa(p.threads)+`;
pid `+filepath.Join(p.dir, "nginx.pid")+`;
error_log stderr crit;
events {
    worker_connections 19900;
    multi_accept on;
}
stream {
    access_log off;
    server {
        listen `+p.listen+` reuseport backlog=4096;
        proxy_pass `+p.upstream+`;
        proxy_connect_timeout 5s;
        proxy_timeout 10m;
        `+directive+`
    }
}
`)
	if err != nil {
		return nil, err
	}
	return start(nginxName, exec.Command("nginx", "-e", "stderr", "-p", p.dir, "-c", config), p.cores)
}

// startCopy is this program's own copyRole.
func startCopy(p placement) (*process, error) {
	peer, err := startRole(copyName, p.gomaxprocs(), p.cores, "copy-role", p.listen, p.upstream)
	if err != nil {
		return nil, err
	}
	return peer.process, nil
}

// startLB is GoShield's load balancer, its very binary, with a PROXY header and
// limits off: the others have none either.
func startLB(p placement) (*process, error) {
	config, err := p.write("lb.yaml", `
listeners:
  - {name: device, address: "`+p.listen+`"}
admin: "`+p.admin+`"
algorithm: round_robin
proxy_protocol: false
connect_timeout: 5s
idle_timeout: 10m
upstreams:
  static: ["`+p.upstream+`"]
health:
  tcp: true
drain: {window: 0s, timeout: 1s}
`)
	if err != nil {
		return nil, err
	}
	return p.startOurs("lb", config)
}

// startOurs starts one of GoShield's binaries.
func (p placement) startOurs(name, config string) (*process, error) {
	cmd := exec.Command(filepath.Join(p.binaries, name), "--config", config)
	cmd.Env = append(environment(), p.gomaxprocs()...)
	if p.log != "" {
		log, err := os.Create(p.log)
		if err != nil {
			return nil, err
		}
		defer log.Close() // the child has its own
		cmd.Stderr = log
	}
	return start(name, cmd, p.cores)
}

func (p placement) gomaxprocs() []string { return []string{"GOMAXPROCS=" + strconv.Itoa(p.threads)} }

// write puts a configuration into the contestant's directory.
func (p placement) write(name, text string) (string, error) {
	path := filepath.Join(p.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// environment is ours without what would configure the lb.
func environment() []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "GOSHIELD_") {
			env = append(env, entry)
		}
	}
	return env
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// versions tells which programs took part.
func versions(opt options) string {
	var known []string
	for _, c := range opt.field {
		switch c.name {
		case haproxyName:
			known = append(known, firstLine("haproxy", "-v"))
		case nginxName:
			known = append(known, firstLine("nginx", "-v"))
		}
	}
	return strings.Join(known, ", ")
}

func firstLine(program string, args ...string) string {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return program + " of unknown version"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	line, _, _ = strings.Cut(line, " - ") // HAProxy's address
	return strings.TrimPrefix(strings.TrimSpace(line), "nginx version: ")
}
