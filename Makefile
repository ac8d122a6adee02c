# `make demo` and `make test` set everything up by themselves in .venv; nothing is installed elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A module is compiled when it is first imported: most of those that pip would compile never are, at two minutes
# of set-up. So the compiled ones have to be kept, whatever the machine's default, and what many processes of the
# tests import first is compiled by one before.
export PYTHONDONTWRITEBYTECODE :=
# Files with tests of a mark: importing the others takes 20 s.
having = $(shell grep -rl --include='test_*.py' 'mark\.$(1)\b' tests)
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest

.PHONY: setup demo lint types test test-ray test-rest test-slow lock clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dlogp_ray needs Python 3.11 or newer; run make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	$(BIN)/python -c 'import torch._inductor.compile_fx, transformers.models.llama.modeling_llama, ray.data, \
		trl.trainer.grpo_trainer, peft, duckdb, s3fs, polars'
	touch $@

demo: setup
	$(BIN)/dlogp demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Side by side: tests with Ray mostly wait for processes, and all else is two processes of one thread. With three
# processes of tests with Ray at once, on two cores, some ran into their time limits.
test: lint
	$(MAKE) --no-print-directory -j3 --output-sync=line types test-ray test-rest

test-ray: setup
	$(PYTEST) -m 'ray and not slow and not gpu' $(call having,ray)

test-rest: setup
	$(PYTEST) -n 2 --dist worksteal -m 'not ray and not slow and not gpu'

test-slow: setup
	$(PYTEST) -m slow

# Pin what is installed now. torch is written without its build tag, so that each machine takes its own build.
lock: setup
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/^\(torch==[^+]*\)+.*/\1/' > constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
