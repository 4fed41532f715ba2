# make env    the environment in .venv, with what tests, benchmarks and peers need
# make demo   tune the light ResNet-50 for 60 s and print its latency beside ONNX Runtime's
# make fast   lint, types, and the unit tests that start no process: within 90 seconds on two cores
# make test   lint, security, types, import layers, documentation, all tests and what they cover: within ten minutes
# make qemu   kernels of every template on an emulated Haswell: AVX2, no AVX-512 (about ten minutes)
# make conformance  all of ONNX's own cases and torch's operators, into docs/results/conformance.md (about an hour)
# make audit  known vulnerabilities of the pinned packages (needs the network)
# make docs   the documentation as a site in build/docs
# make prior  measure for hours, then rebuild data set and weights of the shipped prior, with this CPU in them

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

# What reads the code goes two at a time; the tests have both cores.
test: env
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint security types layers docs
	@$(MAKE) --no-print-directory unit

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

# Lines are counted in the tests of single modules, where that costs seconds; in all tests it would cost minutes.
unit: env chromium
	COVERAGE_CORE=$(COVERAGE_CORE) $(PYTEST) --cov --cov-report=term tests/unit
	$(PYTEST) tests/conformance tests/integration tests/property

# What is right of ONNX's own cases and of torch's operators; the tests run a third of the former.
.PHONY: conformance
conformance: env
	$(BIN)/python -m benchmarks.conformance --results docs/results/conformance.md
	$(BIN)/python -m benchmarks.conformance --suite torch --results docs/results/conformance.md

PRIOR := x86-64
PRIOR_BUDGET := 6h
PRIOR_DB := build/prior.sqlite
PRIOR_THREADS := 2
SHIPPED := src/calumma/prior/shipped/$(PRIOR)

# The suite's networks are held out whole, by name and by hash. Stopped and started again, it goes on where it was. What is
# shipped of other CPUs stays.
HELD_OUT = --exclude "$$($(BIN)/python -c 'from benchmarks import held_out; print(",".join(held_out.published()))')" \
	$$($(BIN)/python -c 'from benchmarks import suite; print(*(f"--exclude-model {suite.path(n)}" for n in suite.names()))')
COLLECT = $(BIN)/calumma collect --budget $(PRIOR_BUDGET) --threads $(PRIOR_THREADS) --db $(PRIOR_DB) $(HELD_OUT)
prior: env
	mkdir -p build $(dir $(SHIPPED))
	$(BIN)/python -m benchmarks.held_out
	$(COLLECT)
	$(COLLECT) --mcpu x86-64-v3
	$(BIN)/calumma learn --db $(PRIOR_DB) --exclude benchmarks/held_out.json \
		--save-data $(SHIPPED).npz -o $(SHIPPED).safetensors

# Of every template and form of a kernel one test, on a CPU with AVX2 alone, emulated: what is built for it runs on it.
.PHONY: qemu
SPACES := tests/property/test_space_
QEMU_TESTS := \
	"$(SPACES)conv2d.py::test_every_configuration_is_right[3x3, a width without divisors]" \
	"$(SPACES)conv2d.py::test_gathered_groups[groups of 34 channels-native]" \
	"$(SPACES)conv2d.py::test_first_layer[1-1-native]" \
	"$(SPACES)depthwise.py::test_every_configuration_is_right[global]" \
	"$(SPACES)winograd.py::test_every_configuration_is_right[one pixel-2]" \
	"$(SPACES)matmul.py::test_dense[odd everything]" \
	"$(SPACES)matmul.py::test_batch_matmul[queries and keys of heads]" \
	"$(SPACES)rows.py::test_every_configuration_is_right[ragged softmax]" \
	"$(SPACES)injective.py::test_every_configuration_is_right[ragged flat]" \
	"$(SPACES)reduction.py::test_every_configuration_is_right[max pooling, blocked]" \
	"$(SPACES)fallback.py::test_every_configuration_is_right[two stages-native]" \
	"$(SPACES)generated.py::test_every_configuration_is_right[conv1d and relu]" \
	"$(SPACES)bfloat16.py::test_without_the_instructions_the_same_comes_out[x86-64-v3]"

qemu: env
	@command -v qemu-x86_64 >/dev/null || { \
		as_root=$$(test "$$(id -u)" = 0 || echo "sudo -n"); \
		$$as_root apt-get update -qq && \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends qemu-user >/dev/null; \
	} || { echo "the emulated tests need QEMU and it could not be installed: install the system's package qemu-user" >&2; exit 1; }
	qemu-x86_64 -cpu Haswell $(BIN)/python -m pytest --durations=0 $(QEMU_TESTS)
