# FAJMA: `make demo` shows it, `make test` proves it. Both set everything up by themselves.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := fajma appservice bridges bots console
export UV_PYTHON_DOWNLOADS := never

.PHONY: help demo demo-check clean-demo test test-full test-slow chaos check bench docs lock packages

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo ## a clinic on this machine: two patients, a doctor, live alarms
	@$(BIN)/fajma demo $(ARGS)

demo-check: $(VENV)/demo ## play the demo unattended and judge it; verdict in build/demo-check.json
	@$(BIN)/fajma demo --check --json build/demo-check.json $(ARGS)

clean-demo: ## forget the demo's accounts, rooms and readings
	rm -rf build/demo build/demo-check

test: $(VENV)/dev packages ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=85 $(ARGS)

test-slow: $(VENV)/dev packages ## the slow tests alone
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(ARGS)

test-full: test test-slow ## all tests

chaos: $(VENV)/dev packages ## kill everything again and again; ARGS="--kills 200 --seed 7"
	@$(BIN)/python -m tests.chaos $(ARGS)

check: $(VENV)/dev ## format, lint, types, layering
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@! grep -nE '"resolved"' tests/browser/package-lock.json
	@! grep -nE 'https?://' requirements*.lock

bench: $(VENV)/dev packages ## measure; one figure with ONLY=name; appends to build/bench.json
	$(BIN)/python -m benchmarks $(ONLY)

docs: $(VENV)/dev ## the documentation as a site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

lock: build/uv/bin/uv ## renew the lock files
	$< pip compile -q --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
	  --extra demo --group build pyproject.toml -o requirements.lock
	$< pip compile -q --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
	  --extra demo --group build --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock

# --- set-up -------------------------------------------------------------------------------------

# A virtual environment from the lock, by uv, which is itself installed from a lock.
$(VENV)/demo: requirements.lock pyproject.toml build/uv/bin/uv
	@test -e $(VENV)/dev || { echo "setting up: Python packages (a few minutes the first time)"; \
	  build/uv/bin/uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) \
	  && build/uv/bin/uv pip sync --quiet --require-hashes --python $(VENV) requirements.lock \
	  && build/uv/bin/uv pip install --quiet --no-deps --no-build-isolation --python $(VENV) -e . ; }
	@touch $@

$(VENV)/dev: requirements-dev.lock pyproject.toml build/uv/bin/uv
	@echo "setting up: Python packages (a few minutes the first time)"
	@build/uv/bin/uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
	@build/uv/bin/uv pip sync --quiet --require-hashes --python $(VENV) requirements-dev.lock
	@build/uv/bin/uv pip install --quiet --no-deps --no-build-isolation --python $(VENV) -e .
	@touch $@ $(VENV)/demo

build/uv/bin/uv: requirements-uv.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	  || { echo "FAJMA needs Python 3.11 or 3.12: make PYTHON=python3.11 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || deploy/debian-packages python3-venv
	@"$(PYTHON)" -m venv build/uv
	@build/uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

# What the tests need besides Python: real servers and a real browser.
packages:
	@deploy/debian-packages mosquitto:mosquitto mosquitto_pub:mosquitto-clients \
	  /usr/lib/postgresql/*/bin/postgres:postgresql chromium:chromium node:nodejs npm:npm setpriv:util-linux \
	  turnserver:coturn \
	  g++:g++ /usr/include/doctest/doctest.h:doctest-dev /usr/include/nlohmann/json.hpp:nlohmann-json3-dev \
	  /usr/include/mbedtls/gcm.h:libmbedtls-dev /usr/include/sodium.h:libsodium-dev \
	  /usr/include/mosquitto.h:libmosquitto-dev clang++-14:clang-14 \
	  /usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a:libclang-rt-14-dev \
	  riscv64-linux-gnu-g++:g++-riscv64-linux-gnu qemu-riscv64:qemu-user \
	  xtensa-lx106-elf-g++:gcc-xtensa-lx106 /usr/include/newlib/c++/*:libstdc++-arm-none-eabi-dev \
	  /usr/include/newlib/stdio.h:libnewlib-dev
