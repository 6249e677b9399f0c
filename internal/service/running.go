package service

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/internal/admin"
	"github.com/goshield/goshield/internal/config"
	"github.com/goshield/goshield/internal/handover"
)

// running is a process whose flags and configuration have been read.
type running[C any] struct {
	Process[C]
	load      func() (C, error) // the configuration as it is now
	log       *zap.Logger
	inherited *handover.Inheritance // nil: no predecessor
	ends      chan os.Signal        // the first one drains, the second one ends at once
	reloads   chan os.Signal
	restarts  chan os.Signal
}

// adminShutdown is how long a reader of the admin pages may take at the end.
const adminShutdown = 3 * time.Second

// serve runs the service until a signal to end has been obeyed.
func (r *running[C]) serve(cfg C) error {
	reg := NewRegistry()
	RegisterBuildInfo(reg)
	srv, err := r.New(cfg, Deps{Log: r.log, Metrics: reg, Inherited: r.inherited})
	if err != nil {
		return err
	}
	reloader, _ := srv.(Reloader[C])
	if reloader != nil {
		signal.Notify(r.reloads, syscall.SIGHUP)
	}
	restarter, _ := srv.(Restarter)
	if restarter != nil && restartSignal != nil {
		signal.Notify(r.restarts, restartSignal)
	}
	adm := admin.New(r.Admin(&cfg), reg, r.log.Named("admin"), srv.Health())
	srv.RegisterAdmin(adm.Mux())
	defer closeAdmin(adm) // metrics to the last
	if err := r.start(srv, adm, r.Admin(&cfg)); err != nil {
		return err
	}
	r.log.Info("started", zap.String("version", VersionString()), zap.String("admin", adm.Addr()), zap.Int("pid", os.Getpid()))
	for {
		select {
		case sig := <-r.ends:
			return r.drain(srv, cfg, sig)
		case <-r.reloads:
			cfg = r.reload(reloader, cfg)
		case <-r.restarts:
			if r.handOver(restarter, adm, r.Admin(&cfg)) {
				return r.leave(restarter, cfg)
			}
		}
	}
}

// start starts the admin server and the service. A successor does so in the other order: until it
// is ready, whoever asks at the socket that both processes have must hear from the one that is.
func (r *running[C]) start(srv Server, adm *admin.Server, address string) error {
	startAdmin := func() error {
		if ln := r.inherited.Listener(address); ln != nil {
			adm.StartOn(ln)
		} else if err := adm.Start(); err != nil {
			return &config.Error{Key: "admin", Err: err}
		}
		return nil
	}
	first, second := startAdmin, srv.Start
	if r.inherited != nil {
		first, second = second, first
	}
	if err := first(); err != nil {
		return err
	}
	if err := second(); err != nil {
		return err
	}
	if err := r.inherited.Ready(); err != nil {
		r.log.Warn("not everybody knows that this process is ready", zap.Error(err))
	}
	return nil
}

func closeAdmin(adm *admin.Server) {
	short, cancel := context.WithTimeout(context.Background(), adminShutdown)
	defer cancel()
	_ = adm.Shutdown(short) // a reader that hangs is cut off
}

// successorPatience is how long a new process may take to be ready.
const successorPatience = 30 * time.Second

// handOver starts a new process in this one's place, and reports whether it accepts. If not, this one
// goes on as if nothing had been asked of it.
func (r *running[C]) handOver(srv Restarter, adm *admin.Server, address string) bool {
	r.log.Info("starting a new process in place of this one")
	sockets, state := srv.HandOver()
	fd, err := handover.Descriptor(adm.Listener())
	if err == nil {
		defer handover.CloseDescriptor(fd)
		var pid int
		pid, err = handover.Start(append(sockets, handover.Socket{Address: address, FD: fd}), state, successorPatience)
		if err == nil {
			r.log.Info("replaced by a new process", zap.Int("successor", pid))
			closeAdmin(adm)
			return true
		}
	}
	r.log.Error("cannot be replaced by a new process, going on", zap.Error(err))
	return false
}

// leave ends this process when its last connection has ended: there is no hurry, for the successor has the
// sockets. A signal to end gives what is left the time that a drain has.
func (r *running[C]) leave(srv Restarter, cfg C) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- srv.Leave(ctx) }() // ends when Leave does, or with the process
	told := false
	for {
		select {
		case err := <-ended:
			r.log.Info("ended")
			return err
		case sig := <-r.ends:
			if told {
				return fmt.Errorf("ended at once by a second signal (%v)", sig)
			}
			told = true
			hurry := time.AfterFunc(r.Drain(&cfg), cancel)
			defer hurry.Stop()
		}
	}
}

// reload brings the configuration as it is now into force and returns it; the one before, if it
// cannot be used.
func (r *running[C]) reload(srv Reloader[C], before C) C {
	cfg, err := r.load()
	if err == nil {
		err = srv.Reload(cfg)
	}
	if err != nil {
		r.log.Error("cannot reload the configuration, the one before stays in force", zap.Error(err))
		return before
	}
	r.log.Info("configuration reloaded")
	return cfg
}

func (r *running[C]) drain(srv Server, cfg C, sig os.Signal) (err error) {
	timeout := r.Drain(&cfg)
	r.log.Info("draining", zap.Stringer("signal", sig), zap.Duration("timeout", timeout))
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- srv.Shutdown(ctx) }() // ends when Shutdown does, or with the process
	select {
	case err = <-ended:
	case sig := <-r.ends:
		return fmt.Errorf("ended at once by a second signal (%v)", sig)
	}
	r.log.Info("ended")
	return err
}
