# Two commands do everything on a fresh machine: `make demo` and `make test`.
#
#   PYTHON    the interpreter to build .venv with (3.11 or newer)
#   PIP_ARGS  more arguments for pip, for instance an index with another build of torch (see README)

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
READY := .venv/.ready

# One thread a process: tests and workers run side by side.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-long test-ci test-all toolchains consumers test-toolchains bench browser check format install clean help

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make demo       the whole pipeline on this machine: corpus, teacher, student, scores, exports, report
demo: $(READY)
	$(BIN)/python -m distill.launch demo --out build/demo

# Two processes, a whole file each; tests/conftest.py orders the files.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

## make test       the tests, within ten minutes on two cores
test: $(READY)
	$(PYTEST) -m "not long and not rare and not toolchain"

## make test-long  the tests that take up to minutes each
test-long: $(READY)
	$(PYTEST) -m "long and not rare and not toolchain"

# One run of pytest: it collects once, and its files share a Ray cluster, tokens, a teacher and a trained model.
## make test-ci    test and test-long in one run, as CI does
test-ci: $(READY)
	$(PYTEST) -m "not rare and not toolchain"

## make test-all   these, and the slow ones that rarely fail alone
test-all: $(READY)
	$(PYTEST) -m "not toolchain"

## make toolchains install what models are exported with beyond ONNX, and trackers: OpenVINO, Core ML, TensorBoard …
toolchains: $(READY)
	$(PIP) --constraint requirements.lock --editable '.[dev,openvino,executorch,litert,coreml,tensorboard,wandb]'
	$(PIP) --no-deps --requirement deploy/litert_converter.txt

## make consumers  install into build/consumers what cannot be beside ours: other versions of transformers, MLflow, Trackio
CONSUMERS := $(patsubst tests/support/consumers/%.txt,build/consumers/%/.ready,$(wildcard tests/support/consumers/*.txt))
consumers: $(CONSUMERS)

build/consumers/%/.ready: tests/support/consumers/%.txt $(READY)
	rm -rf $(@D)
	$(PIP) --no-deps --target $(@D) --requirement $<
	@touch $@

## make test-toolchains  all of these, and the tests that need them
test-toolchains: toolchains consumers
	$(PYTEST) -m toolchain

## make bench      speed and memory, measured here: a table and build/bench.json (BENCH="step data" for some of it)
bench: $(READY)
	$(BIN)/python tests/benchmarks/benchmark_runner.py $(BENCH)

## make browser    fetch the libraries of the page that measures phones into build/browser (npm, pinned); its tests need them
browser: $(READY)
	$(BIN)/python -m deploy.web_page.libraries --out build/browser

## make check      format, lint and strict types
check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

## make format     let ruff format and mend what it can
format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## make install    only make .venv and install the pinned dependencies
install: $(READY)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11: write make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "error: $(PYTHON) has no venv: install it (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --constraint requirements.lock torch
	$(PIP) --constraint requirements.lock --editable '.[dev]'
	@touch $(READY)

## make clean      remove what make made
clean:
	rm -rf .venv build *.egg-info
