# make run   sets up, starts a pair, streams real text through it, kills the broker, serves on
# make test  sets up, runs the tests on both event loops (JOBS=2 at once; ARGS="-k NAME": some of them)
# make kazoo  runs kazoo's own test suite against zkserver (ARGS=--quick: a part; ARGS='--servers 3': an ensemble)
# make chaos  kills daemons under load (KILLS=200), then does everything bad to ensembles (MINUTES=20)
# make compat  compares with Apache ZooKeeper by its own shells, a model of Kafka, the guide's examples
# make differential  random programs against Apache ZooKeeper, every reply and event compared
# make history  records concurrent clients and checks the order of everything (ARGS=--server apache)
# The rest: check (lint, types), sim, bench. All do their own set-up in .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SEEDS ?= 5000
KILLS ?= 200
JOBS ?= 2
MINUTES ?= 20
OPERATIONS ?= 100000
ARGS ?=

.PHONY: run test check sim chaos kazoo compat differential history bench lock clean

$(VENV)/ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "duolog needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(VENV)/ready
	@$(PY) -m duolog_cluster.demo $(ARGS)

test: $(VENV)/ready
	$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

sim: $(VENV)/ready
	$(PY) -m tests.sim --seeds $(SEEDS) $(ARGS)

chaos: $(VENV)/ready
	$(PY) -m tests.faults.chaos --kills $(KILLS) $(ARGS)
	$(PY) -m tests.faults.zk_chaos --minutes $(MINUTES)

kazoo: $(VENV)/ready
	$(PY) -m tests.compat.kazoo $(ARGS)

compat: $(VENV)/ready
	$(PY) -m tests.compat $(ARGS)

differential: $(VENV)/ready
	$(PY) -m tests.oracle.differential --operations $(OPERATIONS) $(ARGS)

history: $(VENV)/ready
	$(PY) -m tests.oracle.recorder --prove $(ARGS)

bench: $(VENV)/ready
	$(PY) -m bench $(ARGS)

# Pins every dependency, with hashes, for all supported versions of Python and platforms.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .venv-kazoo .pytest_cache .mypy_cache .ruff_cache
