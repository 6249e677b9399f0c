package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

// Probe asks a target whether it is well: nil if it is. It returns when ctx
// ends, and leaves nothing open.
type Probe func(ctx context.Context) error

// proxyLocal is a PROXY protocol v2 header with the command LOCAL: "the proxy
// itself is speaking, there is no client" (the PROXY protocol, §2.2).
const proxyLocal = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"

// TCP is a probe that connects to addr. With proxyHeader it sends a PROXY v2
// LOCAL header, without which a target that expects one would count an error.
func TCP(addr string, proxyHeader bool) Probe {
	return func(ctx context.Context) error {
		conn, err := dial(ctx, addr, proxyHeader)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// Exchange is a probe that connects to addr, sends bytes (may be none) and
// expects the answer to begin with others.
func Exchange(addr string, proxyHeader bool, send, expect []byte) Probe {
	return func(ctx context.Context) error {
		conn, err := dial(ctx, addr, proxyHeader)
		if err != nil {
			return err
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if _, err := conn.Write(send); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		got := make([]byte, len(expect))
		n, err := io.ReadFull(conn, got)
		if !bytes.Equal(got[:n], expect[:n]) {
			return fmt.Errorf("answered %x, want %x", got[:n], expect)
		}
		if err != nil {
			return fmt.Errorf("answered %d of %d bytes: %w", n, len(expect), err)
		}
		return nil
	}
}

func dial(ctx context.Context, addr string, proxyHeader bool) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, shorten(err)
	}
	if proxyHeader {
		deadline, _ := ctx.Deadline()
		_ = conn.SetWriteDeadline(deadline)
		if _, err := io.WriteString(conn, proxyLocal); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("send PROXY header: %w", err)
		}
	}
	return conn, nil
}

// shorten drops the address from a dial's error: whoever shows it has named
// the target already. What is left begins with "connect: ".
func shorten(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		return op.Err
	}
	return err
}

// HTTP is a probe that GETs a URL, on a new connection each time, and wants a
// status of 200 to 299. In the template {host} stands for the host of addr and
// {addr} for all of it; see CheckTemplate.
func HTTP(template, addr string) (Probe, error) {
	target, err := URL(template, addr)
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 16 << 10,
			DialContext:            (&net.Dialer{KeepAlive: -1}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", "goshield-health")
		resp, err := client.Do(req)
		if err != nil {
			if u := (*url.Error)(nil); errors.As(err, &u) {
				err = u.Err
			}
			return shorten(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
			return fmt.Errorf("answered %s%s", resp.Status, firstLine(body))
		}
		return nil
	}, nil
}

// CheckTemplate reports what is wrong with a template for HTTP.
func CheckTemplate(template string) error {
	_, err := URL(template, "[2001:db8::1]:80")
	return err
}

// URL is what HTTP asks: the template with the host of addr, and addr itself, in the places for them.
func URL(template, addr string) (string, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if strings.Contains(host, ":") {
		host = "[" + strings.ReplaceAll(host, "%", "%25") + "]"
	}
	text := strings.NewReplacer("{host}", host, "{addr}", strings.ReplaceAll(addr, "%", "%25")).Replace(template)
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || strings.ContainsAny(u.Host, "{}"):
		return "", fmt.Errorf("must be a URL such as http://{host}:9090/readyz, got %q", template)
	case u.Scheme != "http":
		return "", fmt.Errorf("must be a URL with http, got %q", template)
	}
	return text, nil
}

// firstLine is ": " and the first line of a body if it is short text, as that of
// /readyz is, else nothing.
func firstLine(body []byte) string {
	line, _, _ := strings.Cut(string(body), "\n")
	line = strings.TrimSpace(line)
	if line == "" || len(line) > 100 || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return ": " + line
}
