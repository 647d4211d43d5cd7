# Berth: `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# Go may be unpacked without being in PATH.
export PATH := $(PATH):/usr/local/go/bin
GO ?= go
VERSION ?= $(shell git describe --tags --dirty --always 2>/dev/null || echo 0.1.0-dev)
PREFIX ?= /usr/local
DESTDIR ?=
FUZZTIME ?= 20s
BENCHTIME ?= 1s

MODULE := github.com/berth-dev/berth
LDFLAGS := -X $(MODULE)/config.Version=$(VERSION) -X main.version=$(VERSION)
BUILD := CGO_ENABLED=0 $(GO) build -trimpath
BINARIES := bin/berthd bin/berth-shim bin/berthctl

.PHONY: help deps build check test crash demo bench fuzz install clean $(BINARIES)

help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

deps: ## Install what building and testing need: Debian packages, runc, CNI plugins, linter
	hack/setup

build: $(BINARIES) ## Build bin/berthd, bin/berth-shim and bin/berthctl

# Go's build cache decides what is stale, so these are phony.
bin/berthd bin/berthctl:
	$(BUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$(@F)

bin/berth-shim:
	$(BUILD) -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/berth-shim

check: ## Vet, lint, and prove the import rule and the budgets
	hack/setup lint
	$(GO) vet ./...
	bin/tools/golangci-lint run
	$(GO) test -count=1 -run '^TestStructure' .
	@echo "check: vet, linter, import rule and budgets passed"

test: ## Everything: check, then unit and integration tests under the race detector (as root)
	hack/test

crash: deps ## Kill the daemon at every fault point, and shims, runc and plugins at theirs (as root, 5 min)
	BERTH_CRASH=full $(GO) test -count=1 -timeout 60m -v ./test/crash

demo: deps build ## Start a throw-away node and run pods on it
	$(GO) run ./test/demo -bin bin

bench: ## Run the Go benchmarks
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) ./...

fuzz: ## Run each fuzz target for FUZZTIME (20s)
	FUZZTIME=$(FUZZTIME) hack/fuzz

install: build ## Install the binaries into DESTDIR/PREFIX/bin
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(BINARIES) $(DESTDIR)$(PREFIX)/bin/

clean: ## Remove bin/ (runc and the CNI plugins too)
	rm -rf bin
