package logging

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Slog is a *slog.Logger that writes to l: for packages of the SDK, which know
// the standard library only.
func Slog(l *zap.Logger) *slog.Logger { return slog.New(handler{core: l.Core(), name: l.Name()}) }

// handler is a slog.Handler over a zap core.
type handler struct {
	core   zapcore.Core
	name   string
	prefix string // of group names, ending in "." unless empty
}

// Enabled implements slog.Handler.
func (h handler) Enabled(_ context.Context, level slog.Level) bool {
	return h.core.Enabled(zapLevel(level))
}

// Handle implements slog.Handler.
func (h handler) Handle(_ context.Context, r slog.Record) error {
	entry := zapcore.Entry{Level: zapLevel(r.Level), Time: r.Time, LoggerName: h.name, Message: r.Message}
	checked := h.core.Check(entry, nil)
	if checked == nil {
		return nil
	}
	fields := make([]zapcore.Field, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		fields = h.fields(fields, h.prefix, a)
		return true
	})
	checked.Write(fields...)
	return nil
}

// WithAttrs implements slog.Handler.
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var fields []zapcore.Field
	for _, a := range attrs {
		fields = h.fields(fields, h.prefix, a)
	}
	h.core = h.core.With(fields)
	return h
}

// WithGroup implements slog.Handler.
func (h handler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.prefix += name + "."
	}
	return h
}

// fields adds an attribute, those of a group one by one.
func (h handler) fields(to []zapcore.Field, prefix string, a slog.Attr) []zapcore.Field {
	v := a.Value.Resolve()
	switch {
	case v.Kind() == slog.KindGroup:
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			to = h.fields(to, prefix, inner)
		}
		return to
	case a.Key == "" && v.Any() == nil:
		return to // the empty attribute, which slog says to ignore
	case v.Kind() == slog.KindDuration:
		return append(to, zap.Duration(prefix+a.Key, v.Duration()))
	}
	return append(to, zap.Any(prefix+a.Key, v.Any()))
}

func zapLevel(l slog.Level) zapcore.Level {
	switch {
	case l >= slog.LevelError:
		return zapcore.ErrorLevel
	case l >= slog.LevelWarn:
		return zapcore.WarnLevel
	case l >= slog.LevelInfo:
		return zapcore.InfoLevel
	}
	return zapcore.DebugLevel
}
