package logging

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestJSONAndSampling(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log := New(f, zapcore.InfoLevel)
	audit := Unsampled(log.With(zap.String("who", "x"))).Named("audit")
	const lines = 1000
	for range lines {
		log.Info("flood")
		audit.Info("each counts", zap.Duration("duration", 1500*time.Millisecond))
	}
	log.Debug("below the level")
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	floods, audits := 0, 0
	for scan := bufio.NewScanner(f); scan.Scan(); {
		var line struct {
			Msg, Level, Logger, TS, Who string
			Duration                    float64
		}
		if err := json.Unmarshal(scan.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", scan.Text(), err)
		}
		if _, err := time.Parse(time.RFC3339Nano, line.TS); err != nil {
			t.Fatalf("ts: %v", err)
		}
		switch line.Msg {
		case "flood":
			floods++
		case "each counts":
			audits++
			if line.Logger != "audit" || line.Who != "x" || line.Duration != 1.5 {
				t.Fatalf("got %+v", line)
			}
		default:
			t.Errorf("unexpected line %s", scan.Text())
		}
	}
	if audits != lines {
		t.Errorf("%d audit lines, want %d: none may be dropped", audits, lines)
	}
	if floods >= lines || floods < 100 {
		t.Errorf("%d sampled lines, want at least 100 and less than %d", floods, lines)
	}
}
