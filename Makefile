# On a fresh Debian 12 machine, as root: `make demo` or `make test`. Each does all set-up itself; a second
# run skips what is there. Downloads live in GLOWPLUG_CACHE (default /var/cache/glowplug), outside the clone.

SHELL := /bin/bash
BIN := .venv/bin
DEMO_ARGS ?=
PYTEST_ARGS ?=
RESULTS ?= build/benchmarks

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup engine services root demo demo-images lint test bench bench-images clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## System packages, .venv and runsc
	@scripts/setup.sh

engine: setup ## ... and vLLM with a small real model, for the demo and the tests
	@scripts/setup_vllm.sh

services: setup ## ... and runc, CRIU, PostgreSQL, nginx, a registry and image tools, for the tests
	@scripts/apt_packages.sh postgresql nginx-light docker-registry skopeo umoci erofs-utils fuse3
	@scripts/setup_criu.sh

demo: engine ## Scale a real vLLM to zero and back, five times (DEMO_ARGS="--cycles 10")
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

test: lint engine services ## All of lint, then every test (PYTEST_ARGS="-k router")
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: engine ## The benchmarks behind docs/specification.md (about half an hour)
	$(BIN)/python benchmarks/coldstart/bench_vllm.py --output $(RESULTS)
	$(BIN)/python benchmarks/coldstart/bench_torch.py --output $(RESULTS)
	$(BIN)/python benchmarks/router/bench_router.py

clean: ## Remove what these commands made in the clone (not GLOWPLUG_CACHE)
	rm -rf .venv build demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
