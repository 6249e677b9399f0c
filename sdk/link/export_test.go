package link

import "time"

// WithGoodbyeTime makes a good-bye last as long as d at most: a test that looks at what was said is not to
// depend on how soon the machine lets the other end read it.
func (cfg Config) WithGoodbyeTime(d time.Duration) Config {
	cfg.goodbyeTime = d
	return cfg
}
