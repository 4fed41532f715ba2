# make env    the environment in .venv, with what tests, benchmarks and peers need
# make demo   tune the light ResNet-50 for 60 s and print its latency beside ONNX Runtime's
# make test   lint, types, import layers, tests

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first interpreter that runs and has a supported version; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3 python3.11 python3.12; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)

.PHONY: env demo test lint types layers unit
.DELETE_ON_ERROR:

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "calumma needs Python 3.11 or 3.12: none found; make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[torch,bench,dev]'
	touch $@

demo: env
	$(BIN)/python -m benchmarks.demo

test: lint types layers unit

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

layers: env
	$(BIN)/lint-imports --no-logo

unit: env
	$(BIN)/python -m pytest
