// load_balancer spreads devices over the demo's servers, one after the other,
// and leaves out those that are dead until they are back. Run it as
// `go run load_balancer.go`; other ports can be given: its own, then the servers'.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/logging"
	"github.com/goshield/goshield/internal/service"
	"github.com/goshield/goshield/services/lb/balancer"
)

func main() {
	ports := []string{"8080", "8081", "8082", "8083"}
	if len(os.Args) > 1 {
		ports = os.Args[1:]
	}
	cfg := balancer.DefaultConfig()
	cfg.Listeners = []balancer.Listener{{Name: "demo", Address: "127.0.0.1:" + ports[0]}}
	for _, port := range ports[1:] {
		cfg.Upstreams.Static = append(cfg.Upstreams.Static, "127.0.0.1:"+port)
	}
	cfg.Algorithm = "round_robin"
	cfg.MaxConnections = 1000
	cfg.ProxyProtocol = false // the demo's servers do not care who the client is
	cfg.Health.SlowStart = 0
	cfg.Drain.Window = 0

	if err := run(cfg); err != nil {
		log.Fatal(err)
	}
}

// run balances until Ctrl-C.
func run(cfg balancer.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	lb, err := balancer.New(cfg, service.Deps{
		Log:     logging.New(os.Stderr, zap.InfoLevel),
		Metrics: service.NewRegistry(),
	})
	if err != nil {
		return err
	}
	if err := lb.Start(); err != nil {
		return err
	}
	log.Println("load balancer: listening on", lb.Addr("demo"))
	<-ctx.Done()
	lb.Kill() // a real one would drain: Shutdown
	return nil
}
