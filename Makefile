# One line a target; every target installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv-bench
INSTALL := pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: serve test lint models bench-start bench-build

serve: .venv/serve.stamp  ## serve models/ at http://127.0.0.1:8000
	$(BIN)/foldserve $(ARGS)

test: .venv/test.stamp  ## every test
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/test.stamp  ## format, lint, types, import contracts
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

models: .venv/test.stamp  ## rebuild every shipped model from its recipe, replacing version 1
	$(BIN)/foldtrain build digits --repository models --replace 1

bench-start: $(BENCH)/serve.stamp $(BENCH)/fold.stamp .venv/test.stamp  ## how soon the commands answer
	$(BENCH)/serve/bin/python -m tests.benchmarks.bench_start --fold $(BENCH)/fold --torch .venv

bench-build: $(BENCH)/training.stamp  ## how long digits take from data to published version, and how good it is
	$(BENCH)/training/bin/python -m tests.benchmarks.bench_build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serve.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/$(INSTALL) . && touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/$(INSTALL) '.[test]' && touch $@ .venv/serve.stamp

# One environment an extra (serve: none), so that a figure is measured with nothing installed that is not needed.
$(BENCH)/%.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(BENCH)/$* && $(BENCH)/$*/bin/$(INSTALL) '.$(if $(filter-out serve,$*),[$*])' && touch $@
