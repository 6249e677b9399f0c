# Short names for what stands elsewhere. See CONTRIBUTING.md.
.PHONY: test quick long bench build run lint fmt tidy

test: ## all checks, as CI runs them
	./scripts/test

quick: ## the inner loop
	./scripts/test quick

long: ## soaks and full sizes; writes figures into docs/
	./scripts/test long

bench: ## side by side with HAProxy and nginx
	./scripts/bench relay
	./scripts/bench idle

build: ## every program, into bin/
	mkdir -p bin
	go build -o bin/goshield ./cmd/goshield
	for s in lb gateway auth-service echo-backend; do go build -o bin/$$s ./services/$$s || exit; done

run: ## everything in one process
	go run ./cmd/goshield up

lint:
	./scripts/lint

fmt:
	gofmt -w cmd demo internal sdk services

tidy: ## every module's go.mod and go.sum
	go list -m -f '{{.Dir}}' | while read -r dir; do (cd "$$dir" && GOWORK=off go mod tidy) || exit; done
