# One line a target; every target installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: serve test lint models

serve: .venv/serve.stamp  ## serve models/ at http://127.0.0.1:8000
	$(BIN)/foldserve $(ARGS)

test: .venv/test.stamp  ## every test
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/test.stamp  ## format, lint, types, import contracts
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

models: .venv/test.stamp  ## rebuild every shipped model from its recipe, replacing version 1
	$(BIN)/foldtrain build digits --repository models --replace 1

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serve.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) . && touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) '.[test]' && touch $@ .venv/serve.stamp
