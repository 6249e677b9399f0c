package wire_test

import (
	"bytes"
	"fmt"

	"github.com/goshield/goshield/sdk/wire"
)

// A gateway answers every request with its own body.
func Example() {
	token, _ := wire.ParseToken("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
	var toGateway []byte
	toGateway, _ = wire.Append(toGateway, wire.Version1, &wire.Request{ID: 1, Token: token, Service: "echo", Body: []byte(`"a"`)})
	toGateway, _ = wire.Append(toGateway, wire.Version1, &wire.Request{ID: 2, Token: token, Service: "echo", Body: []byte(`{"b":2}`)})

	r := wire.NewReader(bytes.NewReader(toGateway), wire.DefaultMaxPayload)
	var req wire.Request
	var out []byte
	for {
		f, err := r.Next()
		if err != nil {
			fmt.Println(err)
			return
		}
		if err := wire.Unmarshal(f.Version, f.Payload, &req); err != nil {
			fmt.Println(err)
			return
		}
		out, _ = wire.Append(out[:0], f.Version, &wire.Response{ID: req.ID, Body: req.Body})
		fmt.Printf("%s %s -> %s\n", f.Type, req.Service, out[wire.HeaderSize:])
	}
	// Output:
	// REQUEST echo -> {"id":1,"body":"a"}
	// REQUEST echo -> {"id":2,"body":{"b":2}}
	// EOF
}

func ExampleClientIDFromMAC() {
	id, err := wire.ClientIDFromMAC("00:1A:2b:3C:4d:5e")
	fmt.Println(id, err)
	_, err = wire.ClientIDFromMAC("00:1a:2b:3c:4d")
	fmt.Println(err)
	// Output:
	// 5a777ab1f5dc193f889dca9a2de5c3cae446d9b8ad6ba65769cf2f8ad60f495e <nil>
	// mac "00:1a:2b:3c:4d": 10 hex digits, want 12
}
