package auth

import (
	"bytes"
	"net/http"
	"strings"

	"github.com/goshield/goshield/internal/authapi"
)

// caller is who may make a call.
type caller int

const (
	gateways       caller = iota // and administrators
	administrators               // only
)

// route is one call of the API, as openapi.yaml describes it.
type route struct {
	method string
	path   string // with clientIDSegment in place of one
	op     operation
	who    caller
	do     endpoint
}

const clientIDSegment = "{client_id}"

// routes are all of them but the description's own. Those that gateways make all the time come first.
var routes = []route{
	{http.MethodPost, authapi.PathVerify, opVerify, gateways, (*Server).verify},
	{http.MethodPost, authapi.PathRotate, opRotate, gateways, (*Server).rotate},
	{http.MethodPost, authapi.PathTokens, opIssue, gateways, (*Server).issue},
	{http.MethodPost, authapi.PathRelease, opRelease, gateways, (*Server).release},
	{http.MethodGet, authapi.PathClients + clientIDSegment, opShow, administrators, (*Server).showClient},
	{http.MethodDelete, authapi.PathClients + clientIDSegment + "/token", opRevoke, administrators, (*Server).revoke},
	{http.MethodGet, authapi.PathDevices, opDeviceList, administrators, (*Server).listDevices},
	{http.MethodPut, authapi.PathDevices + "/" + clientIDSegment, opDevicePut, administrators, (*Server).putDevice},
	{http.MethodDelete, authapi.PathDevices + "/" + clientIDSegment, opDeviceRemove, administrators, (*Server).removeDevice},
}

var errMethod = &apiError{status: http.StatusMethodNotAllowed, code: authapi.CodeMethodNotAllowed, detail: "not with this method"}

// find is the route of a request, and what stands for {client_id} in its path. The error is an *apiError.
func find(method, path []byte) (to *route, clientID string, err error) {
	known := false
	for i := range routes {
		r := &routes[i]
		id, ok := r.matches(path)
		if !ok {
			continue
		}
		if known = true; r.method == string(method) {
			return r, id, nil
		}
	}
	if known {
		return nil, "", errMethod
	}
	return nil, "", &apiError{status: http.StatusNotFound, code: authapi.CodeNotFound, detail: "no such path"}
}

// matches reports whether a path is the route's.
func (r *route) matches(path []byte) (clientID string, ok bool) {
	before, after, named := strings.Cut(r.path, clientIDSegment)
	if !named {
		return "", r.path == string(path)
	}
	if len(path) <= len(before)+len(after) || string(path[:len(before)]) != before || string(path[len(path)-len(after):]) != after {
		return "", false
	}
	id := path[len(before) : len(path)-len(after)]
	return string(id), bytes.IndexByte(id, '/') < 0
}
