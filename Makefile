# Everything a developer or an operator types. `make` alone lists it.
# The virtual environment is made by the first target that needs it; Python 3.11 or newer and make are enough.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
FUZZ_SECONDS ?= 300
# The folder that contains cifar-10-batches-py.
DATA   ?= $(firstword $(wildcard data ../shared/data) data)

export CIFAR10_ROOT ?= $(abspath $(DATA))
# Where figures are kept. Those in benchmarks/ are what README.md and docs/ show: choose another folder for your machine's.
export RECORDS ?= benchmarks
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: $(shell grep -ohE '^[a-z-]+:' $(MAKEFILE_LIST) | tr -d :)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-22s %s\n", $$1, $$2}'
	@echo 'What is measured is written to benchmarks/; RECORDS=folder takes most of it elsewhere.'

# A CPU serves without torch, which is most of an environment: `make serve` leaves it out where there is no GPU, and
# nothing was installed completely before.
# `make serve GPU=` leaves it out in any case. WSL has /dev/dxg for every maker's GPU, and libcuda for NVIDIA's. AMD's do
# not count: the package index's torch does not compute on them.
GPU     := $(wildcard /dev/nvidia* /dev/nvhost* /dev/nvmap) $(if $(wildcard /dev/dxg),$(wildcard /usr/lib/wsl/lib/libcuda.so*))
SERVING := $(VENV)/$(if $(strip $(GPU))$(wildcard $(VENV)/.installed),.installed,.serving)

define make-venv
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(make-venv)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.serving: pyproject.toml constraints.txt tools/requirements.py
	$(make-venv)
	$(BIN)/python tools/requirements.py --cpu-only >$(VENV)/requirements.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

install: $(VENV)/.installed ## install everything, also what training and tests need

serve: $(SERVING) ## serve the shipped checkpoint on http://127.0.0.1:8000 (settings: RESNET_*)
	$(BIN)/resnet serve

test: $(VENV)/.installed ## run the tests
	$(BIN)/pytest

chaos: $(VENV)/.installed ## tests that take minutes: load, trouble, fuzzing (FUZZ_SEED=, FUZZ_CASES=): docs/reliability.md
	$(BIN)/pytest -m chaos
	$(BIN)/python -m benchmarks.reliability_page

soak: $(VENV)/.installed ## mixed traffic, reloads, a restart, thirty minutes (MINUTES=n): benchmarks/reliability/soak.json
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)
	$(BIN)/python -m benchmarks.reliability_page

fuzz-decode: $(VENV)/.installed ## fuzz the decoding of pictures by coverage (FUZZ_SECONDS=300); needs the extra 'fuzz'
	$(BIN)/python -m tests.fuzz_decode --seconds $(FUZZ_SECONDS)

check: $(VENV)/.installed ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

train: $(VENV)/.installed ## train by the shipped checkpoint's recipe again (DATA=folder), some nine hours on two cores
	$(BIN)/python -m benchmarks.training shipped --root $(DATA)

targets: $(VENV)/.installed ## compare benchmarks/*.json with the targets: docs/targets.md; fails while a target is missed
	$(BIN)/python -m benchmarks.targets

bench-training: $(VENV)/.installed ## the claimed training runs again: nine with a GPU, else the shipped one (RUNS=names, DATA=)
	$(BIN)/python -m benchmarks.training $(RUNS) --root $(DATA)

bench-training-speed: $(VENV)/.installed ## what im2col_convolution.py gains on this CPU, a minute: benchmarks/training_speed.json
	$(BIN)/python -m benchmarks.training_speed

evaluate: $(VENV)/.installed ## score the shipped checkpoint on the test set, also as JPEG, ...: weights/README.md (DATA=)
	mkdir -p $(RECORDS)
	$(BIN)/resnet evaluate --data cifar10 --root $(DATA) --robustness \
		--json $(RECORDS)/evaluate_checkpoint.json
	$(BIN)/python -m benchmarks.model_card

bench: $(VENV)/.installed ## measure engine and service on this machine's CPU, under five minutes on two cores
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	mkdir -p $(RECORDS)
	$(BIN)/resnet bench engine --device cpu --sizes 1,8,32 --rounds 9 --json $(RECORDS)/engine_cpu.json
	$(BIN)/python -m benchmarks.service
	$(BIN)/python -m benchmarks.readme_figures

# The engine takes the precision that "auto" comes to; the targets are for bfloat16. What is compiled takes half a minute
# a size.
ON_A_GPU = 'CUDA graphs bfloat16' 'eager bfloat16 channels-last' 'torch.compile bfloat16 reduce-overhead'

bench-cuda: $(VENV)/.installed ## measure the engine on a GPU in ten minutes (ONLY=engine: it alone): benchmarks/engine_cuda.json
	mkdir -p $(RECORDS)
	$(BIN)/resnet bench engine --device cuda --sizes 1,8,64,256,512,1024 --rounds 7 --only $(or $(ONLY),$(ON_A_GPU)) \
		--json $(RECORDS)/engine_cuda.json

bench-load: $(VENV)/.installed ## int8, random arrivals, large requests; accuracy, which needs CIFAR-10 (DATA=); twenty minutes
	$(BIN)/python -m benchmarks.service --precision int8
	$(BIN)/python -m benchmarks.open_loop
	$(BIN)/python -m benchmarks.large_requests
	$(BIN)/python -m benchmarks.readme_figures
	$(BIN)/python -m benchmarks.served_accuracy --root $(DATA)
	$(BIN)/python -m benchmarks.served_accuracy --root $(DATA) --precision int8
	$(BIN)/python -m benchmarks.precisions --root $(DATA)
	$(BIN)/python -m benchmarks.readme_figures

bench-processes: $(VENV)/.installed ## two HTTP processes beside a single one; needs wrk: benchmarks/http_processes.json
	$(BIN)/python -m benchmarks.http_processes

bench-profile: $(VENV)/.installed ## sample where the service's own time goes: benchmarks/profile_http.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.profile_http

bench-returns: $(VENV)/.installed ## what waiting for returning clients gains, fifteen minutes: benchmarks/returning_clients.json
	$(BIN)/python -m benchmarks.returning_clients

bench-neighbour: $(VENV)/.installed ## batches in pieces and whole beside a busy neighbour, four minutes: benchmarks/neighbour.json
	$(BIN)/python -m benchmarks.neighbour

bench-own: $(VENV)/.installed ## what the service's own Python costs a request, without a network: benchmarks/own_python.json
	$(BIN)/python -m benchmarks.own_python

bench-memory: $(VENV)/.installed ## resident memory over 100,000 requests, some ten minutes on two cores: benchmarks/memory.json
	$(BIN)/python -m benchmarks.memory

# A trial: make bench-peers RECORDS=folder PEERS='--rounds 1'
bench-peers: $(VENV)/.installed ## this service beside six other servers, an hour (PEERS=flags): docs/peers.md
	$(BIN)/python -m benchmarks.peers --engine null --seconds 4 $(PEERS)
	$(BIN)/python -m benchmarks.peers --engine eager $(PEERS)
	$(BIN)/python -m benchmarks.peers --engine checkpoint $(PEERS)
	$(BIN)/python -m benchmarks.readme_figures

experiment-degradation: $(VENV)/.installed ## plain beside residual networks: docs/degradation.md (EXPERIMENT=flags, such as '--epochs 10')
	$(BIN)/python -m benchmarks.degradation --root $(DATA) $(EXPERIMENT)

test-containers: ## build the image, bring the CPU variant up, predict, take it down (needs Docker)
	tests/containers/run.sh

pin-weights: ## pin the SHA-256 of the files in weights/ anew, after the shipped checkpoint was replaced
	cd weights && sha256sum -- *.safetensors >SHA256SUMS

audit: $(VENV)/.installed ## known vulnerabilities of the pinned versions: "Error 1" is some, "Error 2" not all checked
	$(BIN)/python -m tools.audit

sbom: ## list the image's Python packages (without Docker, those of .venv) in sbom.cdx.json (CycloneDX)
	@docker info >/dev/null 2>&1 || $(MAKE) --no-print-directory $(VENV)/.installed
	tools/sbom.sh $(BIN)

clean: ## remove the virtual environment, the caches, the fetched wrk and sbom.cdx.json
	rm -rf $(VENV) .bench *.egg-info .pytest_cache .mypy_cache .ruff_cache sbom.cdx.json
