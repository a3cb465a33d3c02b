# Everything a developer or an operator types. `make` alone lists it.
# The virtual environment is made by the first target that needs it; Python 3.11 or newer and make are enough.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= $(firstword $(wildcard data ../shared/data) data)

export CIFAR10_ROOT ?= $(abspath $(DATA))
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help serve test chaos check format train evaluate bench bench-training experiment-degradation test-containers clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-22s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

serve: $(VENV)/.installed ## serve the shipped checkpoint on http://127.0.0.1:8000 (settings: RESNET_*)
	$(BIN)/resnet serve

test: $(VENV)/.installed ## run the tests
	$(BIN)/pytest

chaos: $(VENV)/.installed ## run the tests that take minutes: load, trouble, draining twenty times in a row
	$(BIN)/pytest -m chaos

check: $(VENV)/.installed ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

train: $(VENV)/.installed ## train by the shipped checkpoint's recipe again (DATA=folder of cifar-10-batches-py), three hours on two cores
	$(BIN)/python -m benchmarks.training shipped --root $(DATA)

bench-training: $(VENV)/.installed ## the claimed training runs again: with a GPU nine of them, else the shipped one (RUNS=names)
	$(BIN)/python -m benchmarks.training $(RUNS) --root $(DATA)

evaluate: $(VENV)/.installed ## accuracy and calibration of the shipped checkpoint on the test set, also as JPEG, grey, ...
	$(BIN)/resnet evaluate --data cifar10 --root $(DATA) --robustness \
		--json benchmarks/evaluate_checkpoint.json
	$(BIN)/python -m benchmarks.model_card

bench: $(VENV)/.installed ## make the figures under benchmarks/ again
	$(BIN)/python -m benchmarks.precision_cpu
	$(BIN)/python -m benchmarks.service --data $(DATA)

experiment-degradation: $(VENV)/.installed ## plain against residual networks: docs/degradation.md (EXPERIMENT=flags, such as '--epochs 10')
	$(BIN)/python -m benchmarks.degradation --root $(DATA) $(EXPERIMENT)

test-containers: ## build the image, bring the CPU variant up, predict, take it down (needs Docker)
	tests/containers/run.sh

clean: ## remove what the targets above have made
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
