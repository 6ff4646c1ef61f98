# make demo       environment, install, the embedded world from texts to report (no GPU, no download of models)
# make test       environment, install, linters and tests: what CI runs
# make lint       the linters alone; make env: the environment alone, for a start with real data
# make bench      the benchmarks that need no text of yours; results go to benchmarks/*/results
# make test-gpu, make bench-gpu   the tests and the benchmarks that need a CUDA GPU
# make clean      removes the environment and what was built; runs/ stays
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.PHONY: demo test test-gpu lint env bench bench-gpu clean

demo: env
	$(BIN)/frbio run demo --out $(OUT)
	@echo "The report: $(abspath $(OUT))/report/report.html"

test: lint
	$(BIN)/python -m pytest -q

test-gpu: env
	$(BIN)/python -m pytest -q -m gpu

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

env: $(BIN)/.installed

# A machine without a GPU gets torch's CPU build: the default wheel on Linux brings several GB of CUDA libraries.
# pip looks for it first where it is already configured to look, then on PyTorch's own index of CPU builds.
$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("frbio_lite needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	if [ "$$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then \
	  $(BIN)/python -m pip install -q "torch==2.13.0+cpu" 2>/dev/null \
	  || $(BIN)/python -m pip install -q "torch>=2.8,<2.14" --index-url https://download.pytorch.org/whl/cpu; \
	fi
	$(BIN)/python -m pip install -q -e ".[dev,bench]"
	touch $@

bench: env
	$(BIN)/python benchmarks/end_to_end/run.py
	$(BIN)/python benchmarks/merging/run.py
	$(BIN)/python benchmarks/evaluation/run.py

bench-gpu: env
	$(BIN)/python benchmarks/gpu/run.py

clean:
	rm -rf $(VENV) build *.egg-info
