# On a fresh Debian 12 machine, as root: `make demo` or `make test`. Each does all set-up itself; a second
# run skips what is there. Downloads live in GLOWPLUG_CACHE (default /var/cache/glowplug), outside the clone.

SHELL := /bin/bash
BIN := .venv/bin
DEMO_ARGS ?=
PYTEST_ARGS ?=
RESULTS ?= build/benchmarks
KILLS ?= 200
SEQUENCES ?= 100
MINUTES ?= 60
SECONDS ?= 60
IMAGE_RUNS ?= 9
BENCH_ENGINES ?= vllm sglang vllm-compile torch
BENCH_ARGS ?= --cold 3 --restores 100 --host 3

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup engine engines services ray root demo demo-images lint test test-gpu nightly kubernetes faults fuzz \
	soak bench bench-images bench-snapshots bench-cluster clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## System packages, .venv and runsc
	@scripts/setup.sh

engine: setup ## ... and vLLM with a small real model, for the demo and the tests
	@scripts/setup_vllm.sh

engines: engine ## ... and transformers, sentence-transformers, ONNX Runtime, llama.cpp and Node.js, for the tests
	@scripts/setup_engines.sh small-models node

ray: setup ## ... and Ray, for the nightly tests of clusters on it
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check ray --constraint constraints.txt

services: setup ## ... and runc, CRIU, PostgreSQL, nginx, an SSH server, a registry and image tools, for the tests
	@scripts/apt_packages.sh postgresql nginx-light docker-registry skopeo umoci erofs-utils fuse3 openssh-server nftables
	@scripts/setup_criu.sh

demo: engine ## A real vLLM from zero, from parked, and on a second node (DEMO_ARGS="--cycles 10")
	@$(BIN)/python scripts/demo.py $(DEMO_ARGS)

root: engine ## ... and a root filesystem with both, several GB, for the demo and the benchmark of images
	@scripts/apt_packages.sh nginx-light
	@scripts/vllm_root.sh

demo-images: root ## Start that vLLM on two nodes with empty caches, through nginx and an S3 server
	@$(BIN)/python scripts/lazy_demo.py

lint: setup ## Style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint engines services ## All of lint, then every test (PYTEST_ARGS="-k router")
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

nightly: engines services root ray ## Tests that take minutes: engines on both runtimes, ranks, the benchmark of GPUs (PYTEST_ARGS="-k sglang"); prints docs/engines.md's figures
	@scripts/setup_engines.sh sglang two-ranks
	@scripts/setup_azurite.sh
	$(BIN)/python -m pytest -m nightly -rP tests $(PYTEST_ARGS)

test-gpu: setup ## The tests of GPU snapshots on this machine's real driver; skips where there is no GPU
	GLOWPLUG_TEST_GPU=real $(BIN)/python -m pytest -rs tests/snapshot/gpu $(PYTEST_ARGS)

kubernetes: setup ## Builds a real kube-apiserver once (20 minutes), and tests operator and agent against it
	@nice scripts/build_kube_apiserver.sh "$${GLOWPLUG_CACHE:-/var/cache/glowplug}/kubernetes-1.20.2"
	$(BIN)/python -m pytest -m nightly tests/engine/kubernetes $(PYTEST_ARGS)

faults: engine services ## kill -9 at every step, 200 random kills under load (half an hour); 100 sequences of faults of a cluster (two hours)
	GLOWPLUG_FAULTS=all GLOWPLUG_FAULT_KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/faults $(PYTEST_ARGS)
	GLOWPLUG_FAULT_SEQUENCES=$(SEQUENCES) $(BIN)/python -m pytest -s tests/control/test_fault_sequences.py $(PYTEST_ARGS)
	GLOWPLUG_FAULT_SEQUENCES=$(SEQUENCES) $(BIN)/python -m pytest -s -m nightly tests/faults/cluster $(PYTEST_ARGS)

fuzz: setup ## Fuzz every parser of what comes from elsewhere, one after the other (SECONDS=60 each)
	@for harness in fuzz/fuzz_*.py; do \
	    name=$$(basename $$harness .py); mkdir -p build/fuzz/$$name; echo "==> $$name"; \
	    $(BIN)/python -m fuzz.$$name -max_total_time=$(SECONDS) -artifact_prefix=build/fuzz/$$name- build/fuzz/$$name \
	        || failed=1; \
	done; exit $${failed:-0}

soak: engine services ## Ten apps, Poisson arrivals, random kills, for an hour (MINUTES=5)
	$(BIN)/python benchmarks/snapshot/soak.py --minutes $(MINUTES) --output $(RESULTS)

bench: engine services ## The benchmarks behind docs/specification.md (about half an hour)
	$(BIN)/python benchmarks/snapshot/bench_engines.py --cold 3 --restores 30 --host 3 --at-once 4 --output $(RESULTS)
	$(BIN)/python benchmarks/coldstart/bench_torch.py --output $(RESULTS)
	$(BIN)/python benchmarks/router/bench_router.py

bench-images: root services ## Every promise of images, beside native ext4 and other ways, 9 runs of each case (hours)
	@scripts/apt_packages.sh gcc libc6-dev libfuse3-dev pkg-config squashfs-tools squashfuse
	$(BIN)/python benchmarks/image/bench_image.py --runs $(IMAGE_RUNS) --output $(RESULTS); failed=$$?; \
	    $(BIN)/python benchmarks/image/bench_zone.py --output $(RESULTS) && exit $$failed

bench-snapshots: engine services ## Engines' cold starts against 100 restores each, one runtime after the other (hours; can be resumed)
	@scripts/setup_engines.sh sglang
	@for engine in $(BENCH_ENGINES); do for runtime in runc runsc; do \
	    $(BIN)/python benchmarks/snapshot/bench_engines.py --engine $$engine --runtime $$runtime \
	        --output $(RESULTS)/$$runtime $(BENCH_ARGS) || failed=1; \
	done; done; exit $${failed:-0}

bench-cluster: services ## A control plane with 1 to 100 simulated nodes, and four real ones: joins, starts elsewhere, a burst (ten minutes)
	@scripts/apt_packages.sh gcc libc6-dev
	$(BIN)/python benchmarks/cluster/bench_control.py --output $(RESULTS); failed=$$?; \
	    $(BIN)/python benchmarks/cluster/bench_nodes.py --output $(RESULTS) && exit $$failed

clean: ## Remove what these commands made in the clone (not GLOWPLUG_CACHE)
	rm -rf .venv build demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
