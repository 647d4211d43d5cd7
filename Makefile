# Berth: `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# Go may be unpacked without being in PATH.
export PATH := $(PATH):/usr/local/go/bin
GO ?= go
# A version that is not semantic is shown as "Unknown" by the kubelet.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || echo "0.1.0-dev$$(git describe --always --dirty 2>/dev/null | sed 's/^/+/')")
PREFIX ?= /usr/local
DESTDIR ?=
FUZZTIME ?= 20s
COUNT ?= 6
BENCHTIME ?= 200ms
RUN ?=
CONTAINERD ?=
CRIO ?=
BENCHARGS ?=

MODULE := github.com/berth-dev/berth
LDFLAGS := -X $(MODULE)/config.Version=$(VERSION) -X main.version=$(VERSION)
# No WASM plugins: their virtual machine costs each daemon a megabyte.
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -tags nri_no_wasm
BINARIES := bin/berthd bin/berth-shim bin/berthctl bin/berth-verify

.PHONY: help deps build check test crash powercut chaos execs e2e vm deb debcheck kind demo bench microbench pullbench fuzz man install clean $(BINARIES)

help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-11s %s\n", $$1, $$2}'

deps: ## Install what building and testing need: Debian packages, runc, CNI plugins, linter
	hack/setup

build: $(BINARIES) ## Build bin/berthd, bin/berth-shim, bin/berthctl and bin/berth-verify

# Go's build cache decides what is stale, so these are phony.
bin/berthd bin/berthctl:
	$(BUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$(@F)

bin/berth-shim bin/berth-verify:
	$(BUILD) -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/$(@F)

check: ## Vet, lint, and prove the import rule and the budgets
	hack/setup lint
	$(GO) vet ./...
	bin/tools/golangci-lint run
	$(GO) test -count=1 -run '^TestStructure' .
	@echo "check: vet, linter, import rule and budgets passed"

test: ## Everything: check, then unit and integration tests under the race detector (as root)
	hack/test

crash: deps ## Kill the daemon at every fault point, and shims, runc and plugins at theirs (as root, 15 min)
	BERTH_CRASH=full $(GO) test -count=1 -timeout 60m -v ./test/crash

powercut: ## Cut the power at every write of the image store, on a recorded disk (as root, 10 min)
	BERTH_POWERCUT=full $(GO) test -count=1 -timeout 60m -v ./test/powercut

chaos: deps build ## Kill the daemon in a loop under 100 containers that write, end and are probed (as root, 5 min)
	BERTH_CHAOS=full $(GO) test -count=1 -timeout 60m -v ./test/chaos
	BERTH_TAR_MB=200 $(GO) test -count=1 -timeout 10m -v ./test/suite -run TestIntegrationStories/session/tar

execs: deps build ## Ten thousand commands in one container; nothing may be left of them (as root, 6 min)
	BERTH_EXECS=10000 $(GO) test -count=1 -timeout 60m -v ./test/suite -run TestIntegrationStories/exec/many

e2e: deps build ## Berth under a real Kubernetes built from Go modules (as root; SHORT=1 leaves out what takes minutes, CASES='job|logs' picks)
	hack/setup k8s
	BERTH_E2E=1 $(GO) test -count=1 -timeout 60m -v ./test/e2e -run 'TestIntegrationKubernetes$(if $(CASES),/($(CASES)|nothing is left))' -args -full=$(if $(SHORT),false,true)

vm: deps ## Integration tests in a virtual machine: cgroup v2, systemd, AppArmor, crun, power cuts (as root; RUN=systemd,crun picks groups)
	$(GO) run ./test/vm -run '$(RUN)' -cache bin/vm

deb: build ## Make the Debian package bin/berth_VERSION_ARCH.deb
	deploy/deb/build bin '$(VERSION)'

debcheck: deb ## Install, upgrade and remove the package and deploy/install in a new Debian (as root, with debootstrap and a mirror)
	deploy/deb/check "$$(ls -t bin/berth_*.deb | head -n 1)"

kind: build ## A node inside a node: the image of deploy/kind/bare under Berth itself (as root, with debootstrap, a mirror and bin/k8s)
	[[ -x bin/k8s/kubelet ]] || hack/setup k8s
	BERTH_KIND=1 $(GO) test -count=1 -timeout 20m -v ./test/kind

demo: deps build ## Start a throw-away node and run pods on it
	$(GO) run ./test/demo -bin bin

bench: deps build ## Measure Berth against the OCI runtime alone, and write docs/performance.md (as root; CONTAINERD=dir and CRIO=dir add peers)
	$(GO) run ./test/bench -bin bin -containerd '$(CONTAINERD)' -crio '$(CRIO)' -out bin/bench -doc docs/performance.md -args '$(BENCHARGS)'

microbench: deps ## Run the Go benchmarks COUNT (6) times, into bin/bench/micro.txt (as root, 5 min): `benchstat docs/microbench.txt bin/bench/micro.txt` compares
	mkdir -p bin/bench
	BERTH_TEST_RUNC=$${BERTH_TEST_RUNC:-$$PWD/bin/runc} BERTH_TEST_CNI_BIN=$${BERTH_TEST_CNI_BIN:-$$PWD/bin/cni} \
		$(GO) test -p 1 -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -count $(COUNT) $$(grep -rl --include='*_test.go' --exclude-dir=bin '^func Benchmark' . | xargs -n 1 dirname | sort -u) >bin/bench/micro.all
	grep -E '^(goos|goarch|pkg|cpu|Benchmark)' bin/bench/micro.all >bin/bench/micro.txt

pullbench: deps build ## Pull about a gigabyte from loopback, against curl | gzip | tar (as root; CONTAINERD=dir and CRIO=dir add peers)
	$(GO) run ./test/pullbench -bin bin -containerd '$(CONTAINERD)' -crio '$(CRIO)' -rounds 3

fuzz: ## Run each fuzz target for FUZZTIME (20s)
	FUZZTIME=$(FUZZTIME) hack/fuzz

man: bin/berthctl ## Write berthctl's manual pages into bin/man
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || date +%s)} bin/berthctl man bin/man

install: build man ## Install the binaries and manual pages into DESTDIR/PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(BINARIES) $(DESTDIR)$(PREFIX)/bin/
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0644 bin/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/

clean: ## Remove bin/ (runc and the CNI plugins too)
	rm -rf bin
