# make demo and make test do all the set-up they need, say so, and do nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests of one file share what is costly to make, so they stay on one worker.
SPREAD := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-long check fix demo-assets bench-start bench-app bench-demo bench-evaluation bench-coverage bench-trainer clean

help:
	@echo "make demo    try it: a tiny model, the whole ring (no GPU, no network once set up)"
	@echo "make test    every test"
	@echo "make test-long  what takes minutes more: the gates over five seeds, 100 kills"
	@echo "make check   format, lint, types, import rules, README map"
	@echo "make fix     put format and lint right where a tool can"
	@echo "make bench-start, -app, -demo, -evaluation, -coverage, -trainer  figures against targets"

# The environment, made when it is missing or its inputs have changed.
$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; about 2 GB with torch) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[all,dev]'
	@touch $@
	@echo "$(VENV) is ready."

demo: $(STAMP)
	@$(BIN)/curator demo

test: $(STAMP)
	@$(BIN)/python -m pytest -q $(SPREAD) $(ARGS)

test-long: $(STAMP)
	@$(BIN)/python -m pytest -q -m long

check: $(STAMP)
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python tools/check_readme.py

fix: $(STAMP)
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

demo-assets: $(STAMP)
	@$(BIN)/python tools/make_demo_assets.py $(ARGS)

bench-start: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.bench_start $(ARGS)

bench-app: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.bench_app $(ARGS)

# The demo on five seeds: about twelve minutes.
bench-demo: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.bench_demo $(ARGS)

bench-evaluation: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.bench_evaluation $(ARGS)

# Thirty demos, each with 2,000 fresh replies: about two hours of a core.
bench-coverage: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.bench_coverage $(ARGS)

bench-trainer: $(STAMP)
	@$(BIN)/python -m tests.benchmarks.bench_trainer $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
