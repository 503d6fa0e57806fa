# Every target does its own set-up: a machine with Python 3.11 or newer and make is enough.
# What each one is for: `make help`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The first Python that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Two workers on two cores; a test module stays on one of them, so that its servers are started once.
PYTEST := $(BIN)/pytest -n 2 --dist loadscope

export PYTHONPATH :=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-long test-postgres test-pythons check format lint types imports mutants \
	bench bench-kafka bench-webhook docs services clean ran-start ran

help:
	@echo "make demo           tens of thousands of Kafka records, two workers, one killed, a proof at the end"
	@echo "make test           everything that fits in minutes"
	@echo "make test-long      the kill tests at full length, 100,000 sleepers"
	@echo "make test-postgres  the event log on PostgreSQL 14, 15, 16 and 17 as well"
	@echo "make test-pythons   core and eventlog on every newer CPython found"
	@echo "make check          what CI runs: format, lint, types, imports and all tests but the long ones"
	@echo "make bench          refold and DBOS side by side; make bench-kafka, make bench-webhook: the connectors"
	@echo "make mutants        break the code in dozens of ways; each must turn a test red"
	@echo "make format         let ruff format and fix;   make docs: write the generated pages again"

$(READY): pyproject.toml constraints.txt tests/requirements.txt
	@test -n "$(PYTHON)" || { echo "refold needs Python 3.11 or newer; none was found as python3 or python3.1x" >&2; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]' -r tests/requirements.txt
	@touch $@

# PgBouncer and NATS come from Debian, where that can be installed. Without one of them its tests are skipped with a
# line that says so, unless REFOLD_REQUIRE_ALL is set: then the fixture fails.
SERVICES := pgbouncer nats-server

services:
	@wanted=""; for program in $(SERVICES); do \
		PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || wanted="$$wanted $$program"; done; \
	if [ -n "$$wanted" ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$wanted; } \
			>/tmp/refold-apt.log 2>&1 || { tail -5 /tmp/refold-apt.log; test -z "$${REFOLD_REQUIRE_ALL:-}"; }; \
	fi

demo: $(READY)
	@$(BIN)/pip install -q -c constraints.txt -r examples/demo/requirements.txt
	@$(BIN)/python -m examples.demo $(ARGS)

test: $(READY) services
	$(PYTEST) -m "not long"

test-long: $(READY) services
	$(BIN)/pytest -m long

test-postgres: $(READY) services
	@for version in 14 15 16 17; do \
		echo "== the event log on PostgreSQL $$version"; \
		REFOLD_TEST_POSTGRES=$$version $(PYTEST) -q -m "not long" tests/eventlog; \
	done

test-pythons: $(READY)
	@$(BIN)/python .ci/pythons.py

format: $(READY)
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy src/refold tests examples bench
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(READY)
	$(BIN)/lint-imports

# One after the other: the machine has two cores, and the tests take both.
check: ran-start $(READY)
	@$(MAKE) lint
	@$(MAKE) types
	@$(MAKE) imports
	@$(MAKE) test-postgres
	@$(MAKE) test-pythons
	@$(MAKE) test
	@$(MAKE) ran

ran-start:
	@rm -f .cache/ran.jsonl

ran: $(READY)
	@$(BIN)/python .ci/ran.py

bench bench-kafka bench-webhook: $(READY)
	@$(BIN)/pip install -q -c constraints.txt -r bench/requirements.txt
	@$(BIN)/python -m $(subst -,.,$@) $(ARGS)

mutants: $(READY)
	@PYTHONPATH=tests $(BIN)/python -m mutants $(ARGS)

docs: $(READY)
	@$(BIN)/python docs/generate.py
	@PYTHONPATH=tests $(BIN)/python -m fixtures.conformance_table

clean:
	rm -rf $(VENV) .venv-* .cache .mypy_cache .pytest_cache .ruff_cache build dist src/*.egg-info
