PYTHON ?= python3
STUDY ?= experiments/quickstart.yaml
WORKERS ?= 2
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test check format golden mutants promises lock ui clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready  ## build .venv from the pinned requirements

run: .venv/ready  ## train and evaluate STUDY (default: experiments/quickstart.yaml)
	@$(BIN)/moc run $(STUDY)

# Processes of one thread each beat threads: the tests are many and small. In the order of their
# folders the files that take minutes come first, and no process waits for another's at the end.
test: .venv/ready  ## run the tests, in WORKERS processes (default: 2)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: .venv/ready  ## lint, formatting, types, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/ready  ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

golden: .venv/ready  ## record the golden losses anew and show the difference
	@$(BIN)/python tests/golden/regenerate.py

mutants: .venv/ready  ## break the code that keeps runs safe, piece by piece: does a test notice?
	@$(BIN)/python -m tests.mutants

promises: .venv/ready  ## write the README's table of faults anew, from the tests' docstrings
	@$(BIN)/python -m tests.support.promises

ui: .venv/ready  ## browse the results in MLflow, on http://127.0.0.1:5000
	@$(BIN)/moc ui

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .import_linter_cache

lock: .venv/ready  ## pin what pyproject.toml asks for, with hashes, into requirements*.lock
	@$(BIN)/python -m tests.support.lock

# Every file that is installed is one whose hash the locks name. A CUDA build of torch asks for
# packages of its own; where pip finds a CPU build of the same version it takes that.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
FOR_CUDA := import importlib.metadata as m; print(*(r for r in m.requires("torch") if "nvidia" in r))
.venv/ready: pyproject.toml requirements.lock requirements-cuda.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 setup"; exit 1; }
	@echo "building .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --require-hashes --no-deps -r requirements.lock
	@[ -z "$$($(BIN)/python -c '$(FOR_CUDA)')" ] || \
	  $(PIP) --require-hashes --no-deps -r requirements-cuda.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
