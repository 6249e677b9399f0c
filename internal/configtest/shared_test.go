package configtest_test

import (
	"testing"

	"github.com/goshield/goshield/internal/configtest"
	"github.com/goshield/goshield/internal/dynamic"
	"github.com/goshield/goshield/internal/redisdb"
)

func TestRedisIsDocumented(t *testing.T) {
	cfg := redisdb.DefaultConfig()
	configtest.DocumentedPart(t, "Redis", "redis", &cfg)
}

func TestDynamicDocumentIsDocumented(t *testing.T) {
	doc := dynamic.Default()
	configtest.DocumentedPart(t, "The dynamic document", "defaults", &doc)
}
