# Everything a developer or CI does with this repository. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# Further arguments of pip, such as an index with CPU builds of torch (see README, "Installation").
PIP_ARGS ?=
BIN := $(VENV)/bin
# A process a core; neighbouring tests stay together while there are others, as they share what took long to make.
PARALLEL := -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format types docs bench check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"OML needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}. Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One stamp file a set of extras: an installation is repeated only when pyproject.toml changed.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo  ## install into .venv and run `oml demo`: train and evaluate on a built-in data set
	$(BIN)/oml demo

test: $(VENV)/.installed-dev  ## install into .venv with the test needs and run all tests
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(VENV)/.installed-dev  ## the tests without those marked slow
	$(BIN)/python -m pytest -m 'not slow' $(PARALLEL)

lint: $(VENV)/.installed-dev  ## ruff: lint and format check
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.installed-dev  ## ruff: mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.installed-dev  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-dev  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-dev  ## run the benchmarks; each prints JSON lines
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

check: test lint types docs  ## all that CI checks but the demo

clean:  ## remove .venv and everything built
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
