//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/goshield/goshield/internal/certs"
	"github.com/goshield/goshield/sdk/wire"
)

const gatewayName = "gateway"

// terminators end TLS: the others merely do so, in front of an echo server; the
// gateway has devices with tokens and limits, and backends behind links.
// handshakers do nothing further with a connection.
var (
	terminators = []contestant{
		{haproxyName, 2, "", behindEcho, func(p placement) (*process, error) {
			return startTLSHAProxy(p, "server echo "+p.upstream)
		}, tryTLS},
		{nginxName, 2, "", behindEcho, func(p placement) (*process, error) {
			return startTLSNginx(p, "proxy_pass "+p.upstream+"; proxy_connect_timeout 5s; proxy_timeout 10m;")
		}, tryTLS},
		{gatewayName, 1, "gateway", behindGateway(1, "link", wire.Version1), startGateway, tryTLS},
	}
	// sleepers are the same, but for another backend of the gateway.
	sleepers = append(slices.Clone(terminators[:2]), contestant{
		gatewayName, 1, "gateway", behindGateway(sleepBackends, "link", wire.Version1), startGateway, tryTLS,
	})
	// gatewayVariants are the gateway with other devices, and other backends.
	gatewayVariants = []contestant{
		{gatewayName + "-v2", 1, "gateway", behindGateway(1, "link", wire.Version2), startGateway, tryTLS},
		{gatewayName + "-http", 1, "gateway", behindGateway(1, "http", wire.Version1), startGateway, tryTLS},
		{gatewayName + "-grpc", 1, "gateway", behindGateway(1, "grpc", wire.Version1), startGateway, tryTLS},
	}
	handshakers = []contestant{
		{haproxyName, 1, "", behindEcho, func(p placement) (*process, error) {
			return startTLSHAProxy(p, "tcp-request content reject")
		}, tryTLS},
		{nginxName, 1, "", behindEcho, func(p placement) (*process, error) { return startTLSNginx(p, `return "";`) }, tryTLS},
		{gatewayName, 1, "gateway", behindGateway(1, "link", wire.Version1), startGateway, tryTLS},
	}
)

// The cipher is the same for all: the one that Go's server picks. Its curve is
// the clients' choice (x25519).
const cipherSuite = "TLS_AES_128_GCM_SHA256"

// identity makes a certificate, ECDSA P-256, and returns its files and one with
// both certificate and key, as HAProxy wants it.
func (p placement) identity() (certs.Paths, string, error) {
	paths, err := certs.EnsureDir(p.dir)
	if err != nil {
		return paths, "", err
	}
	cert, err1 := os.ReadFile(paths.Server)
	key, err2 := os.ReadFile(paths.ServerKey)
	if err := errors.Join(err1, err2); err != nil {
		return paths, "", err
	}
	both := filepath.Join(p.dir, "both.pem")
	return paths, both, os.WriteFile(both, append(cert, key...), 0o600)
}

func startTLSHAProxy(p placement, then string) (*process, error) {
	_, pem, err := p.identity()
	if err != nil {
		return nil, err
	}
	config, err := p.write("haproxy.cfg", `
global
    nbthread `+strconv.Itoa(p.threads)+`
    maxconn 9700
    ssl-default-bind-ciphersuites `+cipherSuite+`
    ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
    mode tcp
    maxconn 9700
    timeout connect 5s
    timeout client 10m
    timeout server 10m
listen tls
    bind `+p.listen+` shards by-thread ssl crt `+pem+`
    `+then+`
`)
	if err != nil {
		return nil, err
	}
	return start(haproxyName, exec.Command("haproxy", "-db", "-f", config), p.cores)
}

func startTLSNginx(p placement, then string) (*process, error) {
	paths, _, err := p.identity()
	if err != nil {
		return nil, err
	}
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
        listen `+p.listen+` ssl reuseport backlog=4096;
        ssl_certificate `+paths.Server+`;
        ssl_certificate_key `+paths.ServerKey+`;
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites `+cipherSuite+`;
        ssl_session_tickets on;
        `+then+`
    }
}
`)
	if err != nil {
		return nil, err
	}
	return start(nginxName, exec.Command("nginx", "-e", "stderr", "-p", p.dir, "-c", config), p.cores)
}

// startGateway is GoShield's gateway, its very binary. Its limits are far above what is reached: each request takes of them, and
// none is refused.
func startGateway(p placement) (*process, error) {
	paths, _, err := p.identity()
	if err != nil {
		return nil, err
	}
	config, err := p.write("gateway.yaml", `
listen: "`+p.listen+`"
websocket: ""
mqtt: ""
push: ""
admin: "`+p.admin+`"
node: bench
tls: {cert: "`+paths.Server+`", key: "`+paths.ServerKey+`"}
auth: {url: "http://`+p.auth+`", secret_file: "`+p.secret()+`"}
backend: {secret_file: "`+p.secret()+`"}
redis: {addresses: ["`+p.redis+`"], mode: single}
drain: {window: 0s, timeout: 100ms}
defaults:
  enrolment: open
  heartbeat: {interval: 20s, missed: 1000}
  idle_timeout: 10m
  device_limit: {rate: 1000000, burst: 1000000}
  services:
    `+echoService+`: {protocol: `+p.protocol+`, endpoints: ["`+strings.Join(p.backends, `", "`)+`"], links: `+strconv.Itoa(gatewayLinks)+`,
      limit: {rate: 1000000}}
`)
	if err != nil {
		return nil, err
	}
	return p.startOurs("gateway", config)
}

// What the gateway is told, and the load must know.
const (
	echoService  = "echo"
	gatewayLinks = 2
)

// secret is the file of the one secret that all of a stack share.
func (p placement) secret() string { return filepath.Join(p.dir, "secret") }

// behindGateway starts what a gateway needs: Redis, auth-service, so many backends that are reached by a
// protocol; its devices speak a version. They run on the cores of the load.
func behindGateway(backends int, protocol string, version byte) func(context.Context, *placement) ([]stopper, error) {
	return func(ctx context.Context, p *placement) ([]stopper, error) {
		p.protocol, p.version = protocol, version
		running, err := startBehindGateway(ctx, p)
		for range backends {
			if err == nil {
				err = startBackend(ctx, p, &running)
			}
		}
		return running, err
	}
}

func startBehindGateway(ctx context.Context, p *placement) ([]stopper, error) {
	if err := os.WriteFile(p.secret(), []byte(rand.Text()+"\n"), 0o600); err != nil {
		return nil, err
	}
	running, err := behindAuth(ctx, p)
	if err != nil {
		return running, err
	}
	err = startAuth(ctx, p, &running, p.others)
	return running, err
}

// startBackend starts an echo-backend, and adds it to p.backends and to what is running.
func startBackend(ctx context.Context, p *placement, running *[]stopper) error {
	admin, err := freeAddress()
	if err != nil {
		return err
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	listen := map[string]string{"link": `"127.0.0.1:0"`, "http": `""`, "grpc": `""`}
	listen[p.protocol] = strconv.Quote(address)
	config, err := p.write(fmt.Sprintf("echo-backend-%d.yaml", len(p.backends)), `
listen: `+listen["link"]+`
http: `+listen["http"]+`
grpc: `+listen["grpc"]+`
admin: "`+admin+`"
secret_file: "`+p.secret()+`"
`)
	if err != nil {
		return err
	}
	backend := *p
	backend.cores, backend.threads = p.others, max(1, len(p.others))
	process, err := backend.startOurs("echo-backend", config)
	if err != nil {
		return err
	}
	p.backends = append(p.backends, address)
	*running = append(*running, process)
	return awaitReady(ctx, process, admin)
}

// behindAuth starts a Redis that keeps nothing on disk, at p.redis.
func behindAuth(ctx context.Context, p *placement) ([]stopper, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p.redis = address
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	redis, err := start("redis-server", exec.Command("redis-server", "--bind", host, "--port", port, "--dir", p.dir,
		"--save", "", "--appendonly", "no"), p.others)
	if err != nil {
		return nil, err
	}
	return []stopper{redis}, await(ctx, redis, func(ctx context.Context) error {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// startAuth starts auth-service at p.auth and adds it to what is running.
func startAuth(ctx context.Context, p *placement, running *[]stopper, on cores) error {
	admin, err := freeAddress()
	if err == nil {
		p.auth, err = freeAddress()
	}
	if err != nil {
		return err
	}
	config, err := p.write("auth-service.yaml", `
listen: "`+p.auth+`"
admin: "`+admin+`"
gateway_secret_file: "`+p.secret()+`"
redis: {addresses: ["`+p.redis+`"], mode: single, timeout: 2s, dial_timeout: 5s}
defaults: {enrolment: open}
`)
	if err != nil {
		return err
	}
	auth := *p
	auth.cores, auth.threads = on, max(1, len(on))
	process, err := auth.startOurs("auth-service", config)
	if err != nil {
		return err
	}
	*running = append(*running, process)
	return awaitReady(ctx, process, admin)
}

// awaitReady waits for a service of ours.
func awaitReady(ctx context.Context, p *process, admin string) error {
	return await(ctx, p, func(ctx context.Context) error {
		_, err := get(ctx, "http://"+admin+"/readyz")
		return err
	})
}

// get reads a page.
func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, answer.Status)
	}
	return string(body), err
}

// sumOf adds up a metric over its labels on a page of Prometheus.
func sumOf(page, name string) float64 {
	var sum float64
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		if value, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64); err == nil {
			sum += value
		}
	}
	return sum
}

// tryTLS is a handshake.
func tryTLS(ctx context.Context, address string) error {
	dialer := tls.Dialer{Config: clientTLS(nil)}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// clientTLS is how all clients of a benchmark speak. Who the server is does not
// matter here.
func clientTLS(sessions tls.ClientSessionCache) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}, ClientSessionCache: sessions,
	}
}
