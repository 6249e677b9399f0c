// Package stacktest brings docker-compose.yml up on a real Docker engine and breaks it: what must
// hold then is in its tests. scripts/stack-test prepares what they need and runs them; without the
// variable GOSHIELD_STACK they are skipped.
package stacktest
