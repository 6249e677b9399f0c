package porttest

import (
	"errors"
	"net"
	"syscall"
	"testing"
)

func TestHeld(t *testing.T) {
	addr := Held(t)
	for range 3 { // as a server that is started, ended and started again
		if c, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("nobody listens: got %v, %v, want refused", c, err)
		}
		// Whoever asks for any port gets another one.
		for range 200 {
			other, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if other.Addr().String() == addr {
				t.Fatalf("%s was given away", addr)
			}
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatalf("the one whose it is cannot listen: %v", err)
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		served, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = served.Close() // first: this end is left in TIME_WAIT
		_ = c.Close()
		_ = ln.Close()
	}
}
