# make env    the environment in .venv, with what tests, benchmarks and peers need
# make demo   tune the light ResNet-50 for 60 s and print its latency beside ONNX Runtime's
# make fast   lint, types, and the unit tests that start no process: within 90 seconds on two cores
# make test   lint, security, types, import layers, documentation, all tests with their coverage: within ten minutes
# make audit  known vulnerabilities of the pinned packages (needs the network)
# make docs   the documentation as a site in build/docs
# make prior  measure for hours, then rebuild the data set and the weights of the prior that is shipped for this CPU

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first interpreter that runs and has a supported version; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3 python3.11 python3.12; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)

# Tests of one group (what measures, what shares a costly fixture) run in one worker, one after another.
WORKERS := 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

# How lines are counted: Python 3.12 tells of each line once, which costs next to nothing; before, each line is traced.
COVERAGE_CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')

.PHONY: env demo fast test lint security audit types layers docs chromium unit prior
.DELETE_ON_ERROR:

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "calumma needs Python 3.11 or 3.12: none found; make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[search,torch,bench,report,docs,dev]'
	touch $@

demo: env
	$(BIN)/python -m benchmarks.demo

fast: lint types
	$(PYTEST) tests/unit -m 'not processes and not long'

test: lint security types layers docs unit

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What data from elsewhere must not reach: pickle, eval, shells, predictable names. Exceptions carry their reason.
security: env
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src benchmarks

# Known vulnerabilities of the pinned packages. Needs the network, so it is no part of `make test`.
audit: env
	@log=$$(mktemp) && status=0 && \
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt >$$log 2>&1 || status=$$?; \
	cat $$log; \
	if grep -qE 'ConnectionError|Max retries|Read timed out|Name or service|not found on PyPI' $$log; then \
		echo 'make audit: the list of vulnerabilities cannot be reached: not everything, or nothing, was audited; run it where PyPI answers' >&2; \
		status=2; \
	fi; \
	rm -f $$log; exit $$status

types: env
	$(BIN)/mypy

layers: env
	$(BIN)/lint-imports --no-logo

# Built anew each time (-E), so that a warning is not hidden by what was built before.
docs: env
	$(BIN)/python -m sphinx -b html -E -W --keep-going --quiet docs build/docs

# The browser in which the report is tested; quick where it is installed.
chromium:
	@command -v chromium >/dev/null || { \
		as_root=$$(test "$$(id -u)" = 0 || echo "sudo -n"); \
		$$as_root apt-get update -qq && \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; \
	} || { echo "the tests of the report need Chromium and it could not be installed: install the system's package chromium" >&2; exit 1; }

unit: env chromium
	COVERAGE_CORE=$(COVERAGE_CORE) $(PYTEST) --cov --cov-report=term

PRIOR := znver5
PRIOR_BUDGET := 6h
PRIOR_DB := build/prior.sqlite
PRIOR_THREADS := 2
SHIPPED := src/calumma/prior/shipped/$(PRIOR)

# The suite's networks are held out whole, by name and by hash. Stopped and started again, it goes on where it was.
prior: env
	mkdir -p build $(dir $(SHIPPED))
	$(BIN)/python -m benchmarks.held_out
	$(BIN)/calumma collect --budget $(PRIOR_BUDGET) --threads $(PRIOR_THREADS) --db $(PRIOR_DB) \
		--exclude "$$($(BIN)/python -c 'from benchmarks import suite; print(",".join(suite.names()))')" \
		$$($(BIN)/python -c 'from benchmarks import suite; print(*(f"--exclude-model {suite.path(n)}" for n in suite.names()))')
	$(BIN)/calumma learn --db $(PRIOR_DB) --data none --exclude benchmarks/held_out.json \
		--save-data $(SHIPPED).npz -o $(SHIPPED).safetensors
