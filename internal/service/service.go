// Package service runs one of GoShield's services as a process: flags,
// configuration, logging, metrics, admin server, signals and drain. What the
// services themselves are stands in their own packages, so that `goshield up`
// and the tests run the same code without this one.
package service

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/handover"
)

// Deps is what every service is given by whoever starts it.
type Deps struct {
	Log     *zap.Logger
	Metrics prometheus.Registerer
	// Inherited are the sockets of the process that this one replaces; nil: it replaces none.
	Inherited *handover.Inheritance
}

// Restarter is a Server that a new process can replace while connections are open, on SIGUSR2.
type Restarter interface {
	// HandOver returns the listening sockets, which stay the server's, and what the new process is to
	// know: anything that JSON can hold, for Deps.Inherited there.
	HandOver() (sockets []handover.Socket, state any)
	// Leave is Shutdown once the new process accepts in this one's place.
	Leave(ctx context.Context) error
}

// Server is a service, made and not yet started.
type Server interface {
	// Start binds every address and serves. When it returns nil, the service
	// takes traffic; an error names the configuration key (a *config.Error) and
	// leaves nothing open.
	Start() error
	// Shutdown drains: no new work, what is under way is finished, until ctx
	// ends; then everything is closed and every goroutine has ended. The error says
	// what was cut short.
	Shutdown(ctx context.Context) error
	// Health is the readiness that the admin server shows.
	Health() *admin.Health
	// RegisterAdmin adds the service's own routes to the admin server.
	RegisterAdmin(mux *http.ServeMux)
}

// Reloader is a Server that takes another configuration while it runs, on SIGHUP. The configuration
// has been loaded and is valid. An error names the key that cannot be used, and leaves what was in
// force before.
type Reloader[C any] interface {
	Reload(cfg C) error
}
