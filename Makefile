# The same words on every machine. Each target sets itself up from nothing.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
JOBS   ?= 2
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test lint bench clean
setup: $(VENV)/.installed

# torch first and pinned: an unpinned torch may pull gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "palora needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup          ## the whole method on the embedded small model
	$(BIN)/palora demo --out runs/demo

test: setup          ## every test; no network, no accelerator
	$(BIN)/python -m pytest --numprocesses $(JOBS)

lint: setup          ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup         ## speed and memory of the core; prints a table
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
