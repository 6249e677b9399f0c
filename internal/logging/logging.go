// Package logging makes the processes' zap loggers: JSON lines, or a form for
// people on a terminal.
package logging

import (
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

// New logs to f at the given level: the console form if f is a terminal, else
// JSON with RFC 3339 times in UTC. Lines of one message are sampled after the
// first 100 a second, so that a fault cannot turn into a flood; the logger named
// "audit" has to be made with Unsampled.
func New(f *os.File, level zapcore.Level) *zap.Logger {
	return zap.New(core(f, level), zap.WrapCore(sample))
}

// Unsampled undoes the sampling of a logger made by New: for the audit log, of which no
// line may be missing.
func Unsampled(l *zap.Logger) *zap.Logger {
	return l.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		if s, ok := c.(*sampled); ok {
			return s.all
		}
		return c
	}))
}

func core(f *os.File, level zapcore.Level) zapcore.Core {
	if term.IsTerminal(int(f.Fd())) {
		cfg := zap.NewDevelopmentEncoderConfig()
		cfg.EncodeLevel = zapcore.CapitalColorLevelEncoder
		cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		cfg.EncodeCaller = nil
		return zapcore.NewCore(zapcore.NewConsoleEncoder(cfg), zapcore.Lock(f), level)
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	cfg.EncodeDuration = zapcore.SecondsDurationEncoder
	return zapcore.NewCore(zapcore.NewJSONEncoder(cfg), zapcore.Lock(f), level)
}
