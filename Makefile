# Two commands on a fresh machine: `make search` runs the main job, `make test` runs the tests.
# Each makes the virtual environment if it is not there, or if what it is made from has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXPORTS := studies/exports

.DEFAULT_GOAL := help
.PHONY: help search test test-faults lint bench clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt torchtitan.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"actune needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Name another by make PYTHON=…") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,hf]'
	$(BIN)/pip install --quiet --no-deps --requirement torchtitan.txt
	@touch $@

search: $(STAMP)  ## Search the best plan for the built-in MoE model on the CPU, and export it
	@mkdir -p $(EXPORTS)
	$(BIN)/python cli.py search studies/moe-tiny.yaml
	$(BIN)/python cli.py export moe-tiny -o $(EXPORTS)/moe-tiny.toml

test: $(STAMP)  ## Run the tests
	$(BIN)/python -m pytest -n 2 -m "not faults"

test-faults: $(STAMP)  ## Run the tests in which something takes long to die, hang or fill up
	$(BIN)/python -m pytest -n 2 -m faults

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## Run the fast benchmarks: one JSON line each, and a small run of what is for cards
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/solver.py --fast
	$(BIN)/python benchmarks/profiling.py --fast
	$(BIN)/python benchmarks/prediction.py --fast
	$(BIN)/python benchmarks/search.py --fast
	$(BIN)/python benchmarks/gpu.py --tiny --device cpu
	$(BIN)/python benchmarks/compiling.py --fast
	$(BIN)/python benchmarks/workers.py --fast
	$(BIN)/python benchmarks/kills.py --fast
	$(BIN)/python benchmarks/bad_input.py --fast
	$(BIN)/python benchmarks/load.py --fast

clean:  ## Remove the virtual environment, caches and studies
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist studies/*.db* studies/logs $(EXPORTS)
