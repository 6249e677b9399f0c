package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/goshield/goshield/internal/authapi"
	"github.com/goshield/goshield/sdk/wire"
)

// connection is what a gateway says of a device's session.
type connection struct {
	ClientID wire.ClientID `json:"client_id"`
	Node     string        `json:"node"`
	Session  string        `json:"session"`
	Epoch    int64         `json:"epoch"`
}

// knownDevice is what auth-service and the gateways know together. Nil: nothing, or nobody who knows was named.
type knownDevice struct {
	ClientID     wire.ClientID        `json:"client_id"`
	Registration *authapi.DeviceState `json:"registration,omitempty"`
	Token        *authapi.ClientState `json:"token,omitempty"`
	Connection   *connection          `json:"connection,omitempty"`
}

func (c *deviceCommand) newShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show DEVICE",
		Short: "Show what is known of a device: its token's state, and where it is connected",
		Args:  exactly("DEVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseDevice(args[0])
			if err != nil {
				return usagef("%q names no device: %w", args[0], err)
			}
			if err := c.connect(cmd); err != nil {
				return err
			}
			defer c.close()
			d, err := c.look(cmd.Context(), id)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(cmd.OutOrStdout(), d)
			}
			return printDevice(cmd.OutOrStdout(), d)
		},
	}
}

// look asks both; that one does not know the device is an answer.
func (c *deviceCommand) look(ctx context.Context, id wire.ClientID) (knownDevice, error) {
	d := knownDevice{ClientID: id}
	if c.auths.known() || !c.pushes.known() {
		var state authapi.ClientState
		switch err := c.auths.call(ctx, http.MethodGet, "/v1/clients/"+id.String(), nil, &state); {
		case err == nil:
			d.Token = &state
		case !refusedWith(err, http.StatusNotFound):
			return d, err
		}
	}
	if c.pushes.known() {
		var where connection
		switch err := c.pushes.call(ctx, http.MethodGet, "/v1/devices/"+id.String(), nil, &where); {
		case err == nil:
			d.Connection = &where
		case !refusedWith(err, http.StatusNotFound):
			return d, err
		}
	}
	return d, nil
}

func printDevice(out io.Writer, d knownDevice) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "client_id\t%s\n", d.ClientID)
	if t := d.Token; t != nil {
		fmt.Fprintf(w, "token\t%s\n", tokenState(t))
		fmt.Fprintf(w, "generation\t%d\n", t.Generation)
		fmt.Fprintf(w, "expires\t%s\n", at(t.ExpiresAt))
		if t.LastRotated != 0 {
			fmt.Fprintf(w, "rotated\t%s\n", at(t.LastRotated))
		}
	} else {
		fmt.Fprintln(w, "token\tnone")
	}
	if s := d.Connection; s != nil {
		fmt.Fprintf(w, "connected\tto %s, session %s\n", s.Node, s.Session)
	} else {
		fmt.Fprintln(w, "connected\tno")
	}
	return w.Flush()
}

func tokenState(t *authapi.ClientState) string {
	switch {
	case t.Revoked:
		return "revoked"
	case time.Now().UnixMilli() > t.ExpiresAt:
		return "expired"
	}
	return "valid"
}

func at(ms int64) string { return time.UnixMilli(ms).Local().Format(clock) }

func (c *deviceCommand) newList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List devices: those registered, and those connected, with their gateways",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.connect(cmd); err != nil {
				return err
			}
			defer c.close()
			list, err := c.all(cmd.Context())
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			return printDevices(cmd.OutOrStdout(), list)
		},
	}
}

// all joins both lists, by client_id, those registered first.
func (c *deviceCommand) all(ctx context.Context) ([]knownDevice, error) {
	list, index := []knownDevice{}, map[wire.ClientID]int{}
	of := func(id wire.ClientID) *knownDevice {
		i, ok := index[id]
		if !ok {
			i = len(list)
			index[id], list = i, append(list, knownDevice{ClientID: id})
		}
		return &list[i]
	}
	if c.auths.known() || !c.pushes.known() {
		err := pages(ctx, c.auths, "", func(p authapi.DeviceList) string {
			for _, d := range p.Devices {
				of(d.ClientID).Registration = &d
			}
			return p.Cursor
		})
		if err != nil {
			return nil, err
		}
	}
	if !c.pushes.known() {
		return list, nil
	}
	type page struct {
		Devices []connection `json:"devices"`
		Cursor  string       `json:"cursor"`
		Missing []string     `json:"missing"`
	}
	err := pages(ctx, c.pushes, "scope=all&", func(p page) string {
		for _, name := range p.Missing {
			fmt.Fprintf(c.notes, "gateway %s cannot be asked: its devices are missing\n", name)
		}
		for _, d := range p.Devices {
			of(d.ClientID).Connection = &d
		}
		return p.Cursor
	})
	return list, err
}

// pages reads all pages of a list; take returns the cursor of the next one. query is "", or ends in "&".
func pages[P any](ctx context.Context, a *api, query string, take func(P) (cursor string)) error {
	cursor := ""
	for {
		var p P
		if err := a.call(ctx, http.MethodGet, "/v1/devices?"+query+"cursor="+url.QueryEscape(cursor), nil, &p); err != nil {
			return err
		}
		if cursor = take(p); cursor == "" {
			return nil
		}
	}
}

func printDevices(out io.Writer, list []knownDevice) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLIENT_ID\tREGISTERED\tCONNECTED TO")
	for _, d := range list {
		registered, where := "no", "-"
		if d.Registration != nil {
			registered = map[bool]string{false: "yes", true: "blocked"}[d.Registration.Blocked]
		}
		if d.Connection != nil {
			where = d.Connection.Node
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", d.ClientID, registered, where)
	}
	return w.Flush()
}

// message is what is pushed. Body is JSON, and reaches the device byte for byte.
type message struct {
	service string
	body    []byte
	wait    time.Duration
}

// request is the body of the push API. encoding/json would reformat what is to stay as it is.
func (m message) request() (rawJSON, error) {
	service, err := json.Marshal(m.service)
	return fmt.Appendf(nil, `{"service":%s,"wait_ms":%d,"body":%s}`, service, m.wait.Milliseconds(), m.body), err
}

func (c *deviceCommand) newPush() *cobra.Command {
	service, wait := "", time.Duration(0)
	cmd := &cobra.Command{
		Use:     "push DEVICE BODY",
		Short:   "Push a message (JSON) to a device",
		Long:    "Push a message to a device, wherever it is connected. BODY is JSON, or - for standard input.\nWith --wait the device has to acknowledge it; without, it is only in the device's queue.",
		Example: `  goshield device push 00:1a:2b:3c:4d:5e --service news '{"hello":"device"}' --wait 5s`,
		Args:    exactly("DEVICE", "BODY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseDevice(args[0])
			if err != nil {
				return usagef("%q names no device: %w", args[0], err)
			}
			body := []byte(args[1])
			if args[1] == "-" {
				if body, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), wire.MaxPayload+1)); err != nil {
					return fmt.Errorf("standard input: %w", err)
				}
			}
			if !json.Valid(body) {
				return usagef("BODY is no JSON: text needs quotes of its own, as in '\"text\"'")
			}
			if err := c.connect(cmd); err != nil {
				return err
			}
			defer c.close()
			return c.pushTo(cmd, id, message{service, body, wait})
		},
	}
	cmd.Flags().StringVar(&service, "service", "push", "`name` that the device is told")
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long for the device's acknowledgement; at most 25s")
	return cmd
}

func (c *deviceCommand) pushTo(cmd *cobra.Command, id wire.ClientID, m message) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), apiTimeout+m.wait)
	defer cancel()
	body, err := m.request()
	if err != nil {
		return err
	}
	var answer struct {
		Result string `json:"result"`
	}
	if err := c.pushes.call(ctx, http.MethodPost, "/v1/devices/"+id.String()+"/messages", body, &answer); err != nil {
		return err
	}
	if c.json {
		return printJSON(cmd.OutOrStdout(), answer)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), answer.Result)
	return err
}
