package logging

import (
	"time"

	"go.uber.org/zap/zapcore"
)

// sampled is a sampling core that remembers the one beneath it.
type sampled struct {
	zapcore.Core
	all zapcore.Core
}

func sample(c zapcore.Core) zapcore.Core {
	return &sampled{Core: zapcore.NewSamplerWithOptions(c, time.Second, 100, 100), all: c}
}

// With implements zapcore.Core for both.
func (s *sampled) With(fields []zapcore.Field) zapcore.Core {
	return &sampled{Core: s.Core.With(fields), all: s.all.With(fields)}
}
