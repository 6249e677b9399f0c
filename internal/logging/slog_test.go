package logging

import (
	"errors"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"go.uber.org/zap"
)

func TestSlog(t *testing.T) {
	core, seen := observer.New(zapcore.InfoLevel)
	log := Slog(zap.New(core).Named("part"))
	log.Debug("too low")
	log.With("with", 1).WithGroup("group").Warn("words",
		"text", "x", "error", errors.New("cause"), "took", time.Second, slog.Group("inner", "deep", true), slog.Attr{})
	log.Error("worse")
	entries := seen.AllUntimed()
	if len(entries) != 2 {
		t.Fatalf("got %d lines, want 2", len(entries))
	}
	got := entries[0]
	if got.Message != "words" || got.Level != zapcore.WarnLevel || got.LoggerName != "part" {
		t.Errorf("got %+v", got.Entry)
	}
	want := map[string]any{"with": int64(1), "group.text": "x", "group.error": "cause", "group.took": time.Second, "group.inner.deep": true}
	if fields := got.ContextMap(); !reflect.DeepEqual(fields, want) {
		t.Errorf("fields: got %v, want %v", fields, want)
	}
	if entries[1].Level != zapcore.ErrorLevel {
		t.Errorf("the second line's level: got %v, want error", entries[1].Level)
	}
}
