// Package transcodetest has the messages that tests of body conversion use.
package transcodetest

import (
	"encoding/base64"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// meter is what protoc makes of
//
//	syntax = "proto3";
//	package meter;
//	import "google/protobuf/timestamp.proto";
//	enum Unit { KWH = 0; M3 = 1; }
//	message Place { double lat = 1; double lon = 2; Place within = 3; }
//	message Sample { sint32 watts = 1; fixed64 at = 2; }
//	message Reading {
//	  string meter = 1;
//	  int32 value = 2;
//	  Unit unit = 3;
//	  repeated Sample samples = 4;
//	  Place place = 5;
//	  bytes raw = 6;
//	  google.protobuf.Timestamp at = 7;
//	  repeated int32 history = 8;
//	}
//	message Receipt { bool taken = 1; string note = 2; Reading reading = 3; }
const meter = `
name: "meter.proto" package: "meter" syntax: "proto3" dependency: "google/protobuf/timestamp.proto"
enum_type { name: "Unit" value { name: "KWH" number: 0 } value { name: "M3" number: 1 } }
message_type { name: "Place"
  field { name: "lat" number: 1 type: TYPE_DOUBLE label: LABEL_OPTIONAL json_name: "lat" }
  field { name: "lon" number: 2 type: TYPE_DOUBLE label: LABEL_OPTIONAL json_name: "lon" }
  field { name: "within" number: 3 type: TYPE_MESSAGE type_name: ".meter.Place" label: LABEL_OPTIONAL json_name: "within" } }
message_type { name: "Sample"
  field { name: "watts" number: 1 type: TYPE_SINT32 label: LABEL_OPTIONAL json_name: "watts" }
  field { name: "at" number: 2 type: TYPE_FIXED64 label: LABEL_OPTIONAL json_name: "at" } }
message_type { name: "Reading"
  field { name: "meter" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL json_name: "meter" }
  field { name: "value" number: 2 type: TYPE_INT32 label: LABEL_OPTIONAL json_name: "value" }
  field { name: "unit" number: 3 type: TYPE_ENUM type_name: ".meter.Unit" label: LABEL_OPTIONAL json_name: "unit" }
  field { name: "samples" number: 4 type: TYPE_MESSAGE type_name: ".meter.Sample" label: LABEL_REPEATED json_name: "samples" }
  field { name: "place" number: 5 type: TYPE_MESSAGE type_name: ".meter.Place" label: LABEL_OPTIONAL json_name: "place" }
  field { name: "raw" number: 6 type: TYPE_BYTES label: LABEL_OPTIONAL json_name: "raw" }
  field { name: "at" number: 7 type: TYPE_MESSAGE type_name: ".google.protobuf.Timestamp" label: LABEL_OPTIONAL json_name: "at" }
  field { name: "history" number: 8 type: TYPE_INT32 label: LABEL_REPEATED json_name: "history" } }
message_type { name: "Receipt"
  field { name: "taken" number: 1 type: TYPE_BOOL label: LABEL_OPTIONAL json_name: "taken" }
  field { name: "note" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL json_name: "note" }
  field { name: "reading" number: 3 type: TYPE_MESSAGE type_name: ".meter.Reading" label: LABEL_OPTIONAL json_name: "reading" } }
`

// Descriptors is the set in base64, as a configuration has it.
func Descriptors(t testing.TB) string {
	t.Helper()
	return encode(t, protodesc.ToFileDescriptorProto(timestamppb.File_google_protobuf_timestamp_proto), file(t))
}

// WithoutImports is the set as protoc makes it without --include_imports.
func WithoutImports(t testing.TB) string {
	t.Helper()
	return encode(t, file(t))
}

func file(t testing.TB) *descriptorpb.FileDescriptorProto {
	t.Helper()
	f := new(descriptorpb.FileDescriptorProto)
	if err := prototext.Unmarshal([]byte(meter), f); err != nil {
		t.Fatal(err)
	}
	return f
}

func encode(t testing.TB, files ...*descriptorpb.FileDescriptorProto) string {
	t.Helper()
	raw, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: files})
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}
