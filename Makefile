# make run   sets up, starts a pair, streams real text through it, kills the broker, serves on
# make test  sets up, runs the tests on both event loops
# make kazoo  runs kazoo's own test suite against zkserver (ARGS=--quick: a part of it)
# make compat  compares with Apache ZooKeeper by its own shells, a model of Kafka, the guide's examples
# The rest: check (lint, types), sim, chaos, bench. All do their own set-up in .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SEEDS ?= 5000
KILLS ?= 200
ARGS ?=

.PHONY: run test check sim chaos kazoo compat bench lock clean

$(VENV)/ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "duolog needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(VENV)/ready
	@$(PY) -m duolog_cluster.demo $(ARGS)

test: $(VENV)/ready
	$(PY) -m pytest $(ARGS)

check: $(VENV)/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

sim: $(VENV)/ready
	$(PY) -m tests.sim --seeds $(SEEDS) $(ARGS)

chaos: $(VENV)/ready
	$(PY) -m tests.faults.chaos --kills $(KILLS) $(ARGS)

kazoo: $(VENV)/ready
	$(PY) -m tests.compat.kazoo $(ARGS)

compat: $(VENV)/ready
	$(PY) -m tests.compat $(ARGS)

bench: $(VENV)/ready
	$(PY) -m bench $(ARGS)

# Pins every dependency, with hashes, for all supported versions of Python and platforms.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .venv-kazoo .pytest_cache .mypy_cache .ruff_cache
