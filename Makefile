# `make demo` runs the whole thread on an embedded corpus and writes a report; `make test` runs all tests.
# Both create .venv from requirements.txt when it is missing. PYTHON=... names the interpreter to make it with.

VENV := .venv
BIN := $(VENV)/bin
OUT ?= exp/demo
export OMP_NUM_THREADS ?= 1
export PYTHON

.PHONY: help setup demo test lint format lock clean

help:
	@echo "make demo    mini corpus, stage 1, stage 2, tokens, language model, probes, report in $(OUT) (15 to 20 minutes on 2 cores);"
	@echo "             CLIP=speech.wav lets the page's listening examples include a recording of your own"
	@echo "make test    all tests, in a process a core (7 minutes on 2 cores); make test ARGS='-m \"not slow\"' leaves the long ones out,"
	@echo "             ARGS='-n 0 tests/test_fsq.py' runs some in one process, for a debugger"
	@echo "make lint    ruff and mypy, as in CI"
	@echo "make setup   only the environment in $(VENV)"

setup:
	@scripts/setup.sh $(VENV)

demo: setup
	@$(BIN)/python -m egs.mini.demo --out $(OUT) $(foreach clip,$(CLIP),--clip $(clip))

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Resolves the pins anew for Python 3.10 to 3.12 (needs `pip install uv`).
lock:
	uv pip compile --universal --python-version 3.10 --no-annotate --no-header --quiet pyproject.toml --extra dev -o requirements.txt

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
