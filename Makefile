# Targets explain themselves: make help.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
GO ?= go

export CGO_ENABLED ?= $(shell command -v gcc >/dev/null 2>&1 && echo 1 || echo 0)

.PHONY: help demo build test lint race setup setup-go setup-npm setup-postgres fuzz contracts vectors vectors-x402 bench-overhead bench-edge chaos chaos-short chaos-vouchers chaos-vouchers-short chaos-sim live-check bench-records bench-paid bench-vouchers records-oracle clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## set up, then sell and buy a call on this machine (ARGS='--exit --json' ends by itself)
	@bin/clawr dev $(ARGS)

build: setup-go ## build bin/clawr
	@mkdir -p bin
	@$(GO) build -o bin/clawr ./cmd/clawr

test: setup build ## set up everything, then run every test
	$(GO) test -timeout 20m ./...

race: setup build ## the packages' tests again, under the race detector (without e2e, which runs whole processes, and the thousandfold attacks)
	$(GO) test -race -skip '^TestAttack' -timeout 30m $$($(GO) list ./... | grep -v '/e2e')

lint: setup-go ## gofmt, go vet and staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt: $$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags failpoint ./cmd/clawr
	$(GO) tool staticcheck ./...

setup: setup-go setup-npm setup-postgres ## install what the tests need

setup-go:
	@$(GO) mod download

setup-npm:
	@command -v npm >/dev/null || scripts/apt nodejs npm
	@if [ ! -e e2e/node_modules/.done ] || [ e2e/package-lock.json -nt e2e/node_modules/.done ]; then \
		cd e2e && npm ci --no-audit --no-fund --loglevel=error && touch node_modules/.done; fi

setup-postgres:
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || scripts/apt postgresql

FUZZTIME ?= 20s
fuzz: setup-go ## run every fuzz target for FUZZTIME
	@for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz || true); do \
			echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; done; done

contracts: setup-npm ## compile the development chain's contracts again
	cd e2e && node ../chain/devchain/contracts/compile.mjs

vectors: setup build ## what clawr serve and the edge in workerd answer to the same cases; the last line is JSON
	@out=$$(mktemp) && CLAWR_VECTORS_OUT=$$out $(GO) test ./e2e -count=1 -run '^TestEdgeVectors$$' -timeout 20m || { cat $$out; rm -f $$out; exit 1; }; cat $$out; rm -f $$out

vectors-x402: setup-npm ## generate testdata/vectors/x402 with the official SDK again
	cd e2e && node vectors/generate.mjs

bench-overhead: setup build ## what clawr adds to a call, beside the official TypeScript stack
	@$(GO) run ./bench overhead

SHARD ?= 1/1
SEED ?= 1
chaos: setup ## kill clawr at every boundary of the money path (SHARD=i/n SEED=…; goes on where bin/chaos-* ends)
	@mkdir -p bin
	@$(GO) run ./e2e/chaos --each 50 --random 5000 --seed $(SEED) --shard $(SHARD) --progress bin/chaos-$(SEED)-$(subst /,of,$(SHARD)).jsonl

chaos-short: setup ## the same, a few hundred times
	@$(GO) run ./e2e/chaos --short --seed $(SEED)

chaos-vouchers: setup ## kill clawr at every boundary of paying by voucher (SHARD=i/n SEED=…; goes on where bin/chaos-vouchers-* ends)
	@mkdir -p bin
	@$(GO) run ./e2e/chaos --vouchers --each 50 --random 1000 --seed $(SEED) --shard $(SHARD) --progress bin/chaos-vouchers-$(SEED)-$(subst /,of,$(SHARD)).jsonl

chaos-vouchers-short: setup ## the same, some sixty times
	@$(GO) run ./e2e/chaos --vouchers --short --seed $(SEED)

RUNS ?= 10000
chaos-sim: setup-go ## RUNS lives of a payment among false facilitators and nodes, in virtual time
	@mkdir -p bin; rm -f bin/chaos-sim.json
	@$(GO) test ./e2e/sim -run TestChaosSim -count=1 -timeout 3h -sim.runs $(RUNS) -sim.seed $(SEED) -sim.summary $(CURDIR)/bin/chaos-sim.json; cat bin/chaos-sim.json

live-check: setup ## publish, pay, update, roll back and remove at the edge: against the look-alike, or where CLOUDFLARE_API_BASE_URL leads
	$(GO) test -count=1 -timeout 20m -run '^TestLiveCheck$$' -v ./e2e

bench-records: setup-go build ## how fast datasets are served and ingested, beside a constant and other stores
	@$(GO) run ./bench/records

records-oracle: setup-go ## 100,000 generated questions, each answered by a segment and by SQLite
	CLAWR_NIGHTLY=1 $(GO) test -count=1 -timeout 3h -v -run '^TestEveryAnswerIsSQLites$$' ./dataset

DURATION ?= 30m
soak: setup ## sell 300 paid calls a second for DURATION and kill the server every minute
	@$(GO) run ./e2e/chaos --soak $(DURATION)

bench-edge: setup-npm ## what the edge costs in plain workerd; the last line is JSON
	@cd e2e && node edge/bench.mjs

SECONDS_ASYNC ?= 60
bench-paid: setup build ## the paid path beside the official TypeScript stack: async, 2 s blocks, settlement, /verify, two nodes
	@$(GO) run ./bench money $(SECONDS_ASYNC)

bench-vouchers: setup build ## calls paid by voucher, beside the official TypeScript stack
	@$(GO) run ./bench vouchers

clean: ## remove what was built
	rm -rf bin e2e/node_modules
