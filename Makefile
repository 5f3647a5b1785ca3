# `make demo` and `make test` each do all the set-up they need. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
# One more than two cores: tests wait for a quarter of their time.
TEST_PROCESSES ?= 3
BIN := $(VENV)/bin
UV := $(BIN)/uv
export UV_NO_PROGRESS ?= 0

.DEFAULT_GOAL := help
.PHONY: help demo up test check lint types unit cluster cluster-down cluster-parts lock protos format clean

help: ## list what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.run-ready ## set up, then run the whole loop on this machine: fund, train, catch a forger, pay, serve (under five minutes)
	@$(BIN)/talkoo demo

up: $(VENV)/.run-ready ## set up, then start a federation of four organizations that stays; Ctrl-C stops it
	@$(BIN)/talkoo up

test: $(VENV)/.dev-ready ## set up, then check and test everything
	@$(MAKE) -s -j2 check cluster-parts
	@$(MAKE) -s unit

check: $(VENV)/.dev-ready lint types ## lint, dependency rule, types, freshness of generated code
	@$(BIN)/python tools/generate_protos.py --check
	@$(BIN)/python tools/check_lock.py
	@$(BIN)/python tools/generate_chart_docs.py --check
	@$(BIN)/python tools/generate_crd_docs.py --check

lint: $(VENV)/.dev-ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: $(VENV)/.dev-ready
	@$(BIN)/mypy

unit: $(VENV)/.dev-ready
	@$(BIN)/python tools/run_tests.py -n $(TEST_PROCESSES)

cluster-parts: $(VENV)/.dev-ready
	@$(BIN)/python -m talkoo_sim.cluster prepare || echo "==> NO REAL CLUSTER: tests that need one are not run, and the last lines say which"

cluster: $(VENV)/.dev-ready ## set up, then bring up Kubernetes on this machine with Talkoo in it (root, Go, Debian packages of tests/kubernetes/packages.txt)
	@$(BIN)/python -m talkoo_sim.cluster up

cluster-down: $(VENV)/.dev-ready ## take the cluster away, whatever became of it
	@$(BIN)/python -m talkoo_sim.cluster down

format: $(VENV)/.dev-ready ## put the code in shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: $(VENV)/.dev-ready ## regenerate the wire contracts
	@$(BIN)/python tools/generate_protos.py

lock: $(VENV)/.dev-ready ## take the newest versions that pyproject.toml allows into requirements/
	@$(BIN)/python tools/lock.py

clean: ## remove the environment and everything built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Each set-up ends with a stamp; a changed lock file makes it anew.
$(VENV)/.base: requirements/bootstrap.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Talkoo needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Set PYTHON=python3.11")'
	@echo "==> making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

$(VENV)/.run-ready: $(VENV)/.base requirements/run.txt pyproject.toml
	@echo "==> fetching pinned dependencies; torch with its CUDA libraries is large: about 2.5 GB to fetch, 5 GB on disk"
	@$(UV) pip install --python $(BIN)/python --require-hashes -r requirements/run.txt
	@$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready requirements/dev.txt
	@echo "==> fetching the test tools"
	@$(UV) pip install --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@
