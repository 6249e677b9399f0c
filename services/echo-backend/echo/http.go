package echo

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/backend"
	"github.com/goshield/goshield/sdk/wire"
)

// httpServer answers POST /<service>, in HTTP/1.1 and in HTTP/2 without TLS, as
// a gateway's route with "protocol": "http" asks. It pushes nothing: an HTTP
// service does that by the gateways' push API.
type httpServer struct {
	srv    *Server
	server *http.Server
	served chan struct{} // closed when serve has ended
}

func (s *Server) serveHTTP(ln net.Listener) *httpServer {
	h := &httpServer{srv: s, served: make(chan struct{})}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	h.server = &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(s.log),
	}
	go h.serve(ln) // ends with stop
	return h
}

func (h *httpServer) serve(ln net.Listener) {
	defer close(h.served)
	if err := h.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		h.srv.health.SetNotReady("the HTTP listener failed")
		h.srv.log.Error("HTTP is no longer served", zap.Error(err))
	}
}

// stop answers what is in flight, until ctx ends.
func (h *httpServer) stop(ctx context.Context) error {
	err := h.server.Shutdown(ctx)
	if err != nil {
		_ = h.server.Close()
	}
	<-h.served
	return err
}

// ServeHTTP implements http.Handler.
func (h *httpServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && r.URL.Path == "/healthz" {
		return // well, as long as it answers
	}
	shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || !h.srv.secret.Matches(shown) {
		http.Error(w, "show the gateways' secret as a bearer token", http.StatusUnauthorized)
		return
	}
	id, err := wire.ParseClientID(r.Header.Get("Goshield-Client-Id"))
	if err != nil || r.Method != http.MethodPost {
		http.Error(w, "want POST /<service> with Goshield-Client-Id", http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxPayload))
	if err != nil {
		http.Error(w, "the body is too long, or was cut short", http.StatusBadRequest)
		return
	}
	resp, err := h.srv.handle(r.Context(), backend.Request{
		ClientID: id,
		Service:  strings.TrimPrefix(r.URL.Path, "/"),
		Body:     body,
		JSON:     r.Header.Get("Content-Type") == "application/json",
	}, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	_, _ = w.Write(resp.Body) // or the gateway is gone
}
