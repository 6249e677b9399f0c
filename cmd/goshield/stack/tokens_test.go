package stack

// Tokens end to end: RELIABILITY rows 42, 44, 45, 48 and 50.

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
	"github.com/goshield/goshield/sdk/client"
	"github.com/goshield/goshield/sdk/wire"
)

// rawDevice speaks the protocol frame by frame.
type rawDevice struct {
	t    *testing.T
	f    *fleet
	from net.IP // the device's own address; nil: whatever the system takes
	conn net.Conn
	in   *wire.Reader
}

func (f *fleet) raw(t *testing.T) *rawDevice {
	t.Helper()
	d := &rawDevice{t: t, f: f}
	d.dial()
	return d
}

// dial makes the connection, or another one in its place.
func (d *rawDevice) dial() {
	d.t.Helper()
	dialer := &tls.Dialer{Config: d.f.tls}
	if d.from != nil {
		dialer.NetDialer = &net.Dialer{LocalAddr: &net.TCPAddr{IP: d.from}}
	}
	conn, err := dialer.DialContext(d.t.Context(), "tcp", d.f.Addr())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(3 * time.Minute)) // longer than anything a test waits for
	d.conn, d.in = conn, wire.NewReader(bufio.NewReader(conn), wire.MaxPayload)
}

func (d *rawDevice) send(m wire.Message) {
	d.t.Helper()
	frame, err := wire.Append(nil, wire.Version1, m)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.conn.Write(frame); err != nil {
		d.t.Fatal(err)
	}
}

// want reads one frame into m, which must be of its type.
func (d *rawDevice) want(m wire.Message) {
	d.t.Helper()
	f, err := d.in.Next()
	if err != nil {
		d.t.Fatalf("want %s, got %v", m.Type(), err)
	}
	d.decode(f, m)
}

func (d *rawDevice) decode(f wire.Frame, m wire.Message) {
	d.t.Helper()
	if f.Type != m.Type() {
		d.t.Fatalf("want %s, got %s %s", m.Type(), f.Type, f.Payload)
	}
	if err := wire.Unmarshal(f.Version, f.Payload, m); err != nil {
		d.t.Fatal(err)
	}
}

// wantClosed wants an ERROR of that code, and the end.
func (d *rawDevice) wantClosed(code wire.Code) {
	d.t.Helper()
	var e wire.Error
	d.want(&e)
	d.lastWord(e, code)
}

func (d *rawDevice) lastWord(e wire.Error, code wire.Code) {
	d.t.Helper()
	if e.Code != code || !e.Close {
		d.t.Fatalf("want %s and close, got %+v", code, e)
	}
	if f, err := d.in.Next(); err == nil {
		d.t.Fatalf("%s after the last word", f.Type)
	}
}

// opening says HELLO and returns the first frame that comes of it. Told that this cannot be decided just now, it comes
// again, on another connection, as devices do.
func (d *rawDevice) opening(id wire.ClientID, token wire.Token) wire.Frame {
	d.t.Helper()
	for {
		d.send(&wire.Hello{ClientID: id, Token: token})
		f, err := d.in.Next()
		if err != nil {
			d.t.Fatalf("after HELLO: %v", err)
		}
		var e wire.Error
		if f.Type != wire.TypeError || wire.Unmarshal(f.Version, f.Payload, &e) != nil || e.Code != wire.CodeAuthUnavailable {
			return f
		}
		<-time.After(e.RetryAfter)
		d.dial()
	}
}

func (d *rawDevice) hello(id wire.ClientID, token wire.Token) (w wire.Welcome) {
	d.t.Helper()
	d.decode(d.opening(id, token), &w)
	return w
}

// refused says HELLO, which must be answered by an ERROR of that code and the end.
func (d *rawDevice) refused(id wire.ClientID, token wire.Token, code wire.Code) {
	d.t.Helper()
	var e wire.Error
	d.decode(d.opening(id, token), &e)
	d.lastWord(e, code)
}

// rotate sends heartbeats with token until an ack brings its successor.
func (d *rawDevice) rotate(token wire.Token) wire.Token {
	d.t.Helper()
	for range 20 {
		d.send(&wire.Heartbeat{Token: token})
		var ack wire.HeartbeatAck
		d.want(&ack)
		if !ack.Token.IsZero() {
			return ack.Token
		}
	}
	d.t.Fatal("no new token in 20 heartbeats")
	return wire.Token{}
}

// Row 42: an old token, replayed after its grace, revokes the record and closes
// every connection of it, at whatever gateway.
func TestReplayClosesEveryConnection(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		doc := quickDocument()
		doc.Token.Grace = 0
		f := start(t, doc, redis)
		id := f.device(t, nil).ClientID
		victim := f.raw(t)
		old := victim.hello(id, wire.Token{}).Token
		now := victim.rotate(old)
		victim.send(&wire.Request{ID: 1, Token: now, Service: "echo", Body: []byte(`1`)})
		var r wire.Response
		victim.want(&r)

		thief := f.raw(t)
		thief.refused(id, old, wire.CodeTokenReused)
		victim.wantClosed(wire.CodeTokenReused)

		f.raw(t).refused(id, now, wire.CodeRevoked)
		again := f.raw(t).hello(id, wire.Token{})
		if again.Token == now || again.Token == old {
			t.Error("enrolment brought an old token")
		}
		until(t, time.Minute, "the replay is in the audit log", func() bool {
			for line := range strings.SplitSeq(f.log.String(), "\n") {
				if strings.Contains(line, `audit"`) && strings.Contains(line, "token_reused") && strings.Contains(line, id.String()) {
					return true
				}
			}
			return false
		})
	})
}

// Row 44: the older of two connections is closed, within a second where nothing else goes on, whichever
// gateways they are at. The balancer takes turns, so that of three connections two
// neighbours are at different gateways.
func TestSecondConnectionWins(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		f := start(t, quickDocument(), redis)
		id := f.device(t, nil).ClientID
		older := f.raw(t)
		token := older.hello(id, wire.Token{}).Token
		var longest time.Duration
		for range 3 {
			newer := f.raw(t)
			token = newer.hello(id, token).Token
			at := time.Now()
			older.wantClosed(wire.CodeTakenOver)
			longest = max(longest, time.Since(at))
			newer.ask(1, token)
			older = newer
		}
		if long {
			t.Attr("taken_over_within", longest.Round(time.Microsecond).String())
			if longest > time.Second {
				t.Errorf("taken over after %v, want a second at most", longest)
			}
		}
	})
}

// Row 45: a token that runs out ends its connection, however silent that is.
func TestTokenExpiresOnALiveConnection(t *testing.T) {
	eachRedis(t, func(t *testing.T, redis []string) {
		doc := quickDocument()
		const ttl = 2 * time.Second
		doc.Token.TTL, doc.Token.Grace, doc.Token.RotateProbability = dynamic.Duration(ttl), 0, 0
		f := start(t, doc, redis)
		d := f.raw(t)
		d.hello(f.device(t, nil).ClientID, wire.Token{})
		at := time.Now()
		d.wantClosed(wire.CodeTokenExpired)
		if took := time.Since(at); long && took > ttl+5*time.Second {
			t.Errorf("closed %v after WELCOME, want within %v and 5 s", took, ttl)
		}
	})
}

// A push finds its device from any gateway, and says so.
func TestPushReachesTheDevice(t *testing.T) {
	f := start(t, quickDocument(), nil)
	cfg := f.device(t, nil)
	got := make(chan string, 16)
	cfg.OnPush = func(p client.Push) { got <- p.Service + " " + string(p.Body) }
	push := f.secret(t, f.secrets.Push)
	// Two connections one after the other: one of them is at the other gateway.
	for range 2 {
		c := dial(t, cfg)
		status, body := call(t, http.MethodPost, "http://"+f.PushAddr()+"/v1/devices/"+cfg.ClientID.String()+"/messages", push,
			`{"service":"alarm","body":{"level":3},"wait_ms":10000}`)
		if status != http.StatusOK {
			t.Fatalf("push: %d %s", status, body)
		}
		if text := <-got; text != `alarm {"level":3}` {
			t.Errorf("got %s", text)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	until(t, time.Minute, "a device that left is not connected", func() bool {
		status, _ := call(t, http.MethodPost, "http://"+f.PushAddr()+"/v1/devices/"+cfg.ClientID.String()+"/messages", push, `{"service":"alarm","body":1}`)
		return status == http.StatusNotFound
	})
}

// recording remembers every token that a device has ever stored.
type recording struct {
	client.TokenStore
	mu      sync.Mutex
	seen    map[wire.Token]bool
	devices map[wire.ClientID]bool
}

func (r *recording) Save(id wire.ClientID, t client.Tokens) error {
	r.mu.Lock()
	r.seen[t.Current], r.devices[id] = true, true
	r.mu.Unlock()
	return r.TokenStore.Save(id, t)
}

// Row 50: no token, no key and no secret stands in any log, metric or error, in any form.
func TestNothingSecretIsWrittenAnywhere(t *testing.T) { eachRedis(t, nothingSecretIsWritten) }

func nothingSecretIsWritten(t *testing.T, redis []string) {
	doc := quickDocument()
	doc.Enrolment = dynamic.EnrolKey
	f := start(t, doc, redis)
	store := &recording{TokenStore: client.MemoryStore(), seen: map[wire.Token]bool{}, devices: map[wire.ClientID]bool{}}
	groupKey, err := hex.DecodeString(f.secret(t, f.secrets.GroupKey))
	if err != nil {
		t.Fatal(err)
	}
	ticketKey, err := hex.DecodeString(f.secret(t, f.secrets.TicketKeys))
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{"the group key": groupKey, "the key of TLS tickets": ticketKey}
	var mu sync.Mutex
	cfg := f.bench(20, 100, 4*time.Second)
	cfg.TokenStore = store
	cfg.DeviceKey = func(id wire.ClientID) *[32]byte {
		key := wire.DeviceKey(groupKey, id)
		mu.Lock()
		defer mu.Unlock()
		secrets["the key of "+id.String()] = key[:]
		return &key
	}
	wantClean(t, runBench(t, cfg))

	output := map[string]string{}
	foreign := f.device(t, nil).ClientID
	for token := range store.seen { // each is another device's: errors that might repeat it
		d := f.raw(t)
		d.send(&wire.Hello{ClientID: foreign, Token: token})
		var e wire.Error
		d.want(&e)
		output["errors"] += e.Error() + "\n"
		if errors.Is(&e, &wire.Error{Code: wire.CodeRateLimited}) {
			break // guessing is limited: enough was seen
		}
	}
	for _, path := range []string{f.secrets.Gateway, f.secrets.Admin, f.secrets.Backend, f.secrets.Push} {
		secrets[path] = []byte(f.secret(t, path))
		_, body := call(t, http.MethodPost, "http://"+f.AuthAddr()+"/v1/tokens/verify", string(secrets[path])+"x", `{"token":7}`)
		output["errors"] += body
		_, body = call(t, http.MethodPost, "http://"+f.PushAddr()+"/v1/devices/x/messages", string(secrets[path]), `{"body"`)
		output["errors"] += body
	}
	_, output["metrics"] = get(t, "http://"+f.AdminAddr()+"/metrics", "")
	_, output["readyz"] = get(t, "http://"+f.AdminAddr()+"/readyz", "")
	output["log"] = f.log.String()
	output[inRedis] = f.records(t, slices.Collect(maps.Keys(store.devices)))
	for token := range store.seen {
		if token.IsZero() {
			continue
		}
		search(t, "a token", token[:], output)
		search(t, "a token's text", []byte(token.Text()), output)
	}
	if len(store.seen) < 20 || len(secrets) < 20 {
		t.Errorf("only %d tokens and %d keys and secrets were seen", len(store.seen), len(secrets))
	}
	for path, secret := range secrets {
		search(t, path, secret, output)
	}
	if !strings.Contains(output["log"], `audit"`) {
		t.Error("the log holds no audit lines: nothing was searched")
	}
}

// records is what Redis holds of these devices: hashes of their tokens at most.
func (f *fleet) records(t *testing.T, ids []wire.ClientID) string {
	t.Helper()
	rdb, err := redisdb.Open(t.Context(), f.redisConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	var all strings.Builder
	for _, id := range ids {
		fields, err := rdb.HGetAll(t.Context(), "goshield:token:{"+id.String()+"}").Result()
		if err != nil || len(fields) == 0 {
			t.Fatalf("the record of %s: %v, %v, want some", id, fields, err)
		}
		fmt.Fprintln(&all, fields)
	}
	return all.String()
}

// inRedis is the output that may hold hashes, but nothing else.
const inRedis = "records in Redis"

// search looks for a secret's plain, hexadecimal, base64 and hashed forms.
func search(t *testing.T, what string, secret []byte, output map[string]string) {
	t.Helper()
	sum := sha256.Sum256(secret)
	plain := []string{
		string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret),
	}
	hashed := []string{hex.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(sum[:])}
	for where, text := range output {
		forms := slices.Clone(plain)
		if where != inRedis {
			forms = append(forms, hashed...)
		}
		for _, form := range forms {
			if strings.Contains(text, form) {
				t.Errorf("%s stands in the %s", what, where)
			}
		}
	}
}

// secret is a secret file's value.
func (f *fleet) secret(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}
