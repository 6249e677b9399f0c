//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	benchOwner = "bench/1"
	// rotations that a record has seen, at least.
	benchRotations = 8
	// numberDigits is the width of a number that redis-benchmark puts in place of numberMark.
	numberDigits = 12
	numberMark   = "__rand_int__"
)

// keeper is an auth-service with its Redis, in which all devices have copies of one record: one token is
// good for each of them.
type keeper struct {
	trial
	redis  *redis.Client
	pids   []int // of Redis and auth-service
	secret string

	token          string // current, of every device
	record         string // as DUMP gives it
	ttl            time.Duration
	verify, rotate []string // EVALSHA and its arguments, as auth-service sends them
}

// deviceName is a client_id, with a number of numberDigits, or numberMark.
func deviceName(number string) string { return "1" + strings.Repeat("0", 63-numberDigits) + number }

func deviceNumber(n int) string { return fmt.Sprintf("%0*d", numberDigits, n) }

func recordKey(number string) string { return "goshield:token:{" + deviceName(number) + "}" }

// startKeeper starts Redis and auth-service on the same cores, where the clients will be, too. The caller stops it.
func (r *rig) startKeeper(ctx context.Context, threads int, opt options) (_ *keeper, err error) {
	p, err := r.place(opt, threads)
	if err != nil {
		return nil, err
	}
	p.others = p.cores
	// A line for each operation would wake this program up as often.
	p.log = filepath.Join(p.dir, "auth-service.log")
	k := &keeper{trial: trial{name: authName, others: p.cores}, secret: rand.Text()}
	defer func() {
		if err != nil {
			k.stop()
		}
	}()
	if err := os.WriteFile(p.secret(), []byte(k.secret+"\n"), 0o600); err != nil {
		return nil, err
	}
	if k.behind, err = behindAuth(ctx, &p); err != nil {
		return nil, err
	}
	redisServer := k.behind[0].(*process)
	var running []stopper
	err = startAuth(ctx, &p, &running, p.cores)
	if len(running) > 0 {
		k.proxy = running[0].(*process)
	}
	if err != nil {
		return nil, err
	}
	k.address = p.auth
	k.pids = []int{redisServer.cmd.Process.Pid, k.proxy.cmd.Process.Pid}
	k.redis = redis.NewClient(&redis.Options{Addr: p.redis, Protocol: 2, DisableIdentity: true, ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	return k, k.prepare(ctx)
}

// stop shadows trial.stop.
func (k *keeper) stop() {
	if k.redis != nil {
		_ = k.redis.Close() // nothing is under way
	}
	k.trial.stop()
}

// prepare enrols device 0, rotates its token, and notes record and scripts: again with other tokens while an argument
// cannot be given to a program.
func (k *keeper) prepare(ctx context.Context) (err error) {
	if k.token, err = k.post(ctx, pathIssue, "", ownerField); err != nil {
		return err
	}
	for rotations := 0; ; rotations++ {
		if rotations >= benchRotations {
			if ok, err := k.note(ctx); ok || err != nil {
				return err
			}
		}
		next, err := k.post(ctx, pathRotate, k.token, ownerField)
		if err != nil {
			return err
		}
		if _, err := k.post(ctx, pathVerify, next, ""); err != nil {
			return err
		}
		k.token = next
	}
}

// note keeps the record of device 0 and the scripts that auth-service has executed on it. It is not ok if an argument
// has a zero byte.
func (k *keeper) note(ctx context.Context) (ok bool, err error) {
	if k.record, err = k.redis.Dump(ctx, recordKey(deviceNumber(0))).Result(); err != nil {
		return false, err
	}
	if k.ttl, err = k.redis.PTTL(ctx, recordKey(deviceNumber(0))).Result(); err != nil {
		return false, err
	}
	if k.verify, err = k.overhear(ctx, pathVerify, ""); err != nil {
		return false, err
	}
	if k.rotate, err = k.overhear(ctx, pathRotate, ownerField); err != nil {
		return false, err
	}
	// The new token is another one each time, as those of auth-service are.
	const successor = 5 // EVALSHA sha 1 key hash successor
	k.rotate[successor] = k.rotate[successor][:32-numberDigits] + numberMark
	for _, arg := range append(k.verify, k.rotate...) {
		if strings.ContainsRune(arg, 0) {
			return false, nil
		}
	}
	return true, nil
}

// overhear has auth-service execute an operation on device 0, and returns the EVALSHA that it sends for it, for any
// device.
func (k *keeper) overhear(ctx context.Context, path, more string) ([]string, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", k.redis.Options().Addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(conn)
	if _, err := io.WriteString(conn, "MONITOR\r\n"); err != nil {
		return nil, err
	}
	if !lines.Scan() || lines.Text() != "+OK" {
		return nil, fmt.Errorf("MONITOR: %q, %w", lines.Text(), lines.Err())
	}
	if _, err := k.post(ctx, path, k.token, more); err != nil {
		return nil, err
	}
	for lines.Scan() {
		_, said, _ := strings.Cut(lines.Text(), "] ")
		args, err := unquoteAll(said)
		if err != nil {
			return nil, fmt.Errorf("MONITOR: %q: %w", lines.Text(), err)
		}
		const key = 3
		if strings.EqualFold(args[0], "evalsha") && len(args) > key {
			args[key] = strings.Replace(args[key], deviceName(deviceNumber(0)), deviceName(numberMark), 1)
			return args, nil
		}
	}
	return nil, fmt.Errorf("MONITOR: no EVALSHA for %s: %w", path, lines.Err())
}

// unquoteAll reads words in quotes, which Redis escapes as Go does.
func unquoteAll(text string) (words []string, err error) {
	for text != "" {
		quoted, err := strconv.QuotedPrefix(text)
		if err != nil {
			return nil, err
		}
		word, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, err
		}
		words = append(words, word)
		text = strings.TrimPrefix(text[len(quoted):], " ")
	}
	return words, nil
}

// The operations, and what a rotation and an enrolment say beside device and token.
const (
	pathIssue  = "/v1/tokens"
	pathVerify = "/v1/tokens/verify"
	pathRotate = "/v1/tokens/rotate"
	ownerField = `,"owner":"` + benchOwner + `"`
)

// tokenBody is a request's; a device without a token says none.
func tokenBody(number, token, more string) string {
	if token != "" {
		more = `,"token":"` + token + `"` + more
	}
	return `{"client_id":"` + deviceName(number) + `"` + more + `}`
}

// post carries an operation out on device 0; it returns the new token, if there is one.
func (k *keeper) post(ctx context.Context, path, token, more string) (string, error) {
	body := strings.NewReader(tokenBody(deviceNumber(0), token, more))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+k.address+path, body)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+k.secret)
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", k.explain(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s: %s", path, answer.Status)
	}
	var granted struct {
		Token string `json:"token"`
	}
	return granted.Token, json.NewDecoder(answer.Body).Decode(&granted)
}

// fill gives devices 0 to n-1 the record, whatever they had. It returns the bytes that each takes.
func (k *keeper) fill(ctx context.Context, n int) (float64, error) {
	if err := k.redis.FlushDB(ctx).Err(); err != nil {
		return 0, err
	}
	before, err := k.used(ctx)
	if err != nil {
		return 0, err
	}
	const batch = 1000
	for from := 0; from < n; from += batch {
		_, err := k.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := from; i < min(from+batch, n); i++ {
				p.Restore(ctx, recordKey(deviceNumber(i)), k.ttl, k.record)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	after, err := k.used(ctx)
	return (after - before) / float64(n), err
}

// used is the memory that Redis has in use, without that for its clients.
func (k *keeper) used(ctx context.Context) (float64, error) {
	all, err := k.info(ctx, "memory", "used_memory")
	if err != nil {
		return 0, err
	}
	clients, err := k.info(ctx, "memory", "mem_clients_normal")
	return float64(all - clients), err
}

// info is a number of INFO; 0 if it is not there.
func (k *keeper) info(ctx context.Context, section, name string) (int64, error) {
	text, err := k.redis.Info(ctx, section).Result()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, nil
}

// bare has redis-benchmark execute a script: for about a window, but at most so many times.
func (k *keeper) bare(ctx context.Context, s *setting[keeping], script []string, most int, opt options) (measurement, error) {
	first, err := k.benchmark(ctx, s, script, min(leastRotated/2, most)) // tells how many take so long
	if err != nil {
		return first, err
	}
	return k.benchmark(ctx, s, script, min(max(int(first.rate()*opt.window.Seconds()), leastRotated/2), most))
}

func (k *keeper) benchmark(ctx context.Context, s *setting[keeping], script []string, n int) (measurement, error) {
	host, port, err := net.SplitHostPort(k.redis.Options().Addr)
	if err != nil {
		return measurement{}, err
	}
	args := []string{"-h", host, "-p", port, "-c", strconv.Itoa(s.Connections), "-n", strconv.Itoa(n), "-r", strconv.Itoa(s.Devices), "--csv"}
	cmd := exec.CommandContext(ctx, "redis-benchmark", append(args, script...)...)
	var out bytes.Buffer
	cmd.Stdout = &out
	failed, err := k.failures(ctx)
	if err != nil {
		return measurement{}, err
	}
	m := measurement{Done: int64(n)}
	before, err := cpuUsed(k.pids)
	if err != nil {
		return m, err
	}
	if err := k.others.run(cmd.Start); err != nil {
		return m, err
	}
	if err := cmd.Wait(); err != nil {
		return m, fmt.Errorf("redis-benchmark: %w", err)
	}
	after, err := cpuUsed(k.pids)
	if err != nil {
		return m, err
	}
	m.CPU = after.minus(before)
	if again, err := k.failures(ctx); err != nil || again != failed {
		return m, errors.Join(err, fmt.Errorf("redis-benchmark: %d scripts failed", again-failed))
	}
	err = readCSV(out.String(), &m)
	return m, err
}

// failures is how many scripts have ended with an error.
func (k *keeper) failures(ctx context.Context) (int64, error) {
	text, err := k.redis.Info(ctx, "commandstats").Result()
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(text, "cmdstat_evalsha:")
	_, rest, ok := strings.Cut(rest, "failed_calls=")
	if !ok {
		return 0, errors.New("INFO commandstats says nothing of EVALSHA")
	}
	count, _, _ := strings.Cut(rest, "\r\n")
	return strconv.ParseInt(count, 10, 64)
}

// readCSV reads the last line that redis-benchmark writes into m, whose Done is known: a name, in which anything may stand, and requests
// per second, and ms: mean, least, p50, p95, p99, most.
func readCSV(text string, m *measurement) error {
	fields := strings.Split(strings.TrimSpace(text), `","`)
	if len(fields) < 8 {
		return fmt.Errorf("redis-benchmark wrote %q", text)
	}
	numbers := make([]float64, 7)
	for i, field := range fields[len(fields)-7:] {
		var err error
		if numbers[i], err = strconv.ParseFloat(strings.Trim(field, `"`), 64); err != nil {
			return fmt.Errorf("redis-benchmark wrote %q: %w", text, err)
		}
	}
	if numbers[0] <= 0 {
		return fmt.Errorf("redis-benchmark wrote %q", text)
	}
	const milliseconds = float64(time.Millisecond)
	m.Elapsed = time.Duration(float64(m.Done) / numbers[0] * float64(time.Second))
	m.P50, m.P99 = time.Duration(numbers[3]*milliseconds), time.Duration(numbers[5]*milliseconds)
	return nil
}

// ask has clients ask auth-service.
func (k *keeper) ask(ctx context.Context, s *setting[keeping], path, more string, opt options) (measurement, error) {
	return k.measureOnce(ctx, "ask-role", askSpec{
		Address: k.address, Secret: k.secret, Path: path, Body: tokenBody(numberMark, k.token, more),
		Connections: s.Connections, Devices: s.Devices, Warm: opt.warm, Window: opt.window, PIDs: k.pids,
	}, opt)
}
