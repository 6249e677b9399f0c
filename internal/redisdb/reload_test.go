package redisdb_test

import (
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"

	"github.com/goshield/goshield/internal/redisdb"
)

// TestLossReloadsTheMap: a command that got no answer has the client read the map of the slots at
// once, long before it would by itself: the node may be dead, and another in its place.
func TestLossReloadsTheMap(t *testing.T) {
	srv, err := server.NewServer("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	addr := srv.Addr().String()
	host, text, _ := net.SplitHostPort(addr)
	port, _ := strconv.Atoi(text)
	var maps atomic.Int64
	for name, answer := range map[string]func(*server.Peer){
		"CLUSTER": func(c *server.Peer) {
			maps.Add(1)
			c.WriteLen(1)
			c.WriteLen(3)
			c.WriteInt(0)
			c.WriteInt(16383)
			c.WriteLen(2)
			c.WriteBulk(host)
			c.WriteInt(port)
		},
		"SET": (*server.Peer).WriteOK,
		"GET": (*server.Peer).Close, // as a node does that dies
	} {
		if err := srv.Register(name, func(c *server.Peer, _ string, _ []string) { answer(c) }); err != nil {
			t.Fatal(err)
		}
	}
	rdb, err := redisdb.Open(t.Context(), redisdb.Config{Addresses: []string{addr}, Mode: redisdb.ModeCluster, Timeout: 30 * time.Second, DialTimeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rdb.Close() }()
	if err := rdb.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	before := maps.Load()
	if err := rdb.Get(t.Context(), "k").Err(); err == nil {
		t.Fatal("GET of a node that dies = nil, want an error")
	}
	for deadline := time.Now().Add(20 * time.Second); maps.Load() == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the map of the slots was not read again within 20 s")
		}
	}
}
