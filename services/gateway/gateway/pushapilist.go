package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"go.uber.org/zap"

	"github.com/goshield/goshield/sdk/wire"
	"github.com/goshield/goshield/services/gateway/registry"
)

// The lists of the push API: the devices of this gateway, and those of all.

// scopeAll asks for the devices of all gateways.
const scopeAll = "all"

// devicesAnswer is a page of devices; Cursor is empty on the last.
type devicesAnswer struct {
	Devices []whereabouts `json:"devices"`
	Cursor  string        `json:"cursor,omitempty"`
	Missing []string      `json:"missing,omitempty"` // gateways that could not be asked
}

func (s *Server) serveDevices(w http.ResponseWriter, r *http.Request) {
	cursor := r.URL.Query().Get("cursor")
	switch scope := r.URL.Query().Get("scope"); {
	case scope == scopeAll && s.peers != nil:
		s.serveAllDevices(w, r, cursor)
		return
	case scope != "" && scope != scopeAll:
		writeProblem(w, http.StatusBadRequest, codeBadRequest, `scope must be "all", or left out`)
		return
	}
	from, err := parseCursor(cursor)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, codeBadRequest, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, s.devicesPage(from))
}

// parseCursor reads where a gateway's own list goes on; nil: at its beginning.
func parseCursor(cursor string) (*wire.ClientID, error) {
	if cursor == "" {
		return nil, nil
	}
	id, err := wire.ParseClientID(cursor)
	if err != nil {
		return nil, fmt.Errorf("this is no cursor: %w", err)
	}
	return &id, nil
}

// devicesPage is a page of this gateway's devices.
func (s *Server) devicesPage(from *wire.ClientID) devicesAnswer {
	list, last := s.table.page(from, devicesPage)
	answer := devicesAnswer{Devices: make([]whereabouts, len(list))}
	for i, ses := range list {
		answer.Devices[i] = ses.whereabouts()
	}
	if !last {
		answer.Cursor = list[len(list)-1].client.String()
	}
	return answer
}

// serveAllDevices answers with a page of one gateway's devices, gateway after gateway in the order of their
// names. A cursor is the gateway's name, a slash, and its own cursor; if that gateway is gone, the next one follows.
func (s *Server) serveAllDevices(w http.ResponseWriter, r *http.Request, cursor string) {
	name, rest, ok := strings.Cut(cursor, "/")
	from, err := parseCursor(rest)
	if err != nil || cursor != "" && (!ok || name == "") {
		writeProblem(w, http.StatusBadRequest, codeBadRequest, "this is no cursor")
		return
	}
	nodes, err := s.registry.Nodes(r.Context())
	if err != nil {
		writeProblem(w, http.StatusServiceUnavailable, codeUnavailable, "which gateways there are cannot be told just now")
		return
	}
	for len(nodes) > 0 && nodes[0].Name < name {
		nodes = nodes[1:]
	}
	if len(nodes) == 0 {
		writeJSON(w, http.StatusOK, devicesAnswer{Devices: []whereabouts{}})
		return
	}
	node := nodes[0]
	if node.Name != name {
		from = nil
	}
	answer := s.devicesOf(r.Context(), node, from)
	switch {
	case answer.Cursor != "":
		answer.Cursor = node.Name + "/" + answer.Cursor
	case len(nodes) > 1:
		answer.Cursor = nodes[1].Name + "/"
	}
	writeJSON(w, http.StatusOK, answer)
}

// devicesOf is a page of a gateway's devices. One that cannot be asked is named as missing.
func (s *Server) devicesOf(ctx context.Context, node registry.NamedNode, from *wire.ClientID) devicesAnswer {
	if node.Name == s.cfg.Node {
		return s.devicesPage(from)
	}
	answer, err := s.peers.devices(ctx, node.Node, from)
	if err != nil {
		s.log.Debug("a gateway's devices could not be listed", zap.String("gateway", node.Name), zap.Error(err))
		return devicesAnswer{Devices: []whereabouts{}, Missing: []string{node.Name}}
	}
	return answer
}

// maxDevicesAnswer bounds what is read of a page, in bytes: entries have about 200.
const maxDevicesAnswer = 1 << 20

// devices asks another gateway for a page of its devices.
func (p *peers) devices(ctx context.Context, node registry.Node, from *wire.ClientID) (answer devicesAnswer, err error) {
	if node.Push == "" {
		return answer, errNoPushAPI
	}
	if !p.take() {
		return answer, errPeersBusy
	}
	defer p.give()
	cursor := ""
	if from != nil {
		cursor = from.String()
	}
	err = p.exchange(ctx, node, peerCall{method: http.MethodGet, path: pathDevices + "?cursor=" + url.QueryEscape(cursor)}, func(resp *http.Response) error {
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return json.NewDecoder(io.LimitReader(resp.Body, maxDevicesAnswer)).Decode(&answer)
	})
	if err == nil && answer.Devices == nil {
		answer.Devices = []whereabouts{}
	}
	return answer, err
}

var errNoPushAPI = errors.New("it has no push API")
