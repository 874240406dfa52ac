# Every target sets up its own environment first; see BUILD.md. Another interpreter: make PYTHON=/path/to/python quickstart

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
# Without bytecode: half a minute less, and Python compiles what it imports.
INSTALL := $(BIN)/python -m pip --quiet --disable-pip-version-check install --no-compile
# Images of containers often switch that off, and each start then compiles what it imports again, longer than the import takes.
export PYTHONDONTWRITEBYTECODE :=
CONFIG ?= configs/quickstart.py

# A name on the PATH can be a shim that fails when run, so each is tried.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
  $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

ifeq ($(shell uname -s),Linux)
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=68719476736:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0
endif

.PHONY: quickstart test lint bench docs clean

quickstart: $(VENV)/.runtime
	$(BIN)/python -m ssl_jax.main --config=$(CONFIG)

test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one and pass it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(BIN)/python
	@echo "installing runtime packages into $(VENV)"
	$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements.txt | $(BIN)/python
	@echo "installing runtime packages and test tools into $(VENV)"
	$(INSTALL) -r requirements-dev.txt
	@touch $@ $(VENV)/.runtime

$(VENV)/.bench: requirements-bench.txt $(VENV)/.runtime
	@echo "installing benchmark peers into $(VENV)"
	$(INSTALL) -r requirements-bench.txt
	@touch $@

$(VENV)/.docs: requirements-docs.txt | $(BIN)/python
	@echo "installing the site's tools into $(VENV)"
	$(INSTALL) -r requirements-docs.txt
	@touch $@
