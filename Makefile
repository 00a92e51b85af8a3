# One line a target; every target installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv-bench
INSTALL := pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: serve test test-clients test-zoo test-exporters test-load test-doctor soak fuzz lint models bench-start bench-bn bench-build bench-fold bench-large bench-remedies bench-schedule bench-serve bench-train

serve: .venv/serve.stamp  ## serve models/ at http://127.0.0.1:8000
	$(BIN)/foldserve $(ARGS)

test: .venv/test.stamp  ## every test
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-clients: $(BENCH)/kserve.stamp .venv/test.stamp  ## KServe's client, whose packages do not go with ours
	$(BIN)/python -m pytest tests/contract/test_kserve_client.py $(ARGS)

test-load: .venv/test.stamp  ## a hundred thousand requests of all kinds: a minute or two
	$(BIN)/python -m tests.load.mixed $(ARGS)

test-doctor: .venv/test.stamp  ## forty-five faults in six kinds of networks, and thirty healthy ones: two minutes
	$(BIN)/python -m tests.training.bn.survey $(ARGS)

soak: .venv/test.stamp  ## an hour of mixed load with kills, restarts, reloads and hostile clients (ARGS="--minutes 5": less)
	$(BIN)/python -m tests.soak.mixed_hour $(ARGS)

fuzz: .venv/test.stamp  ## fold a hundred thousand random graphs: half an hour on 2 cores
	$(BIN)/python -m tests.training.fold.fuzz $(ARGS)

test-zoo: $(BENCH)/zoo.stamp  ## a step of training for 80 networks and for every preset and flag, the fold of all of torchvision's: two hours
	$(BENCH)/zoo/bin/python -m tests.zoo.trained && $(BENCH)/zoo/bin/python -m tests.zoo $(ARGS)

test-exporters: $(BENCH)/exporters.stamp  ## fold what Keras and Flax export: ten minutes
	$(BENCH)/exporters/bin/python -m tests.zoo.exporters $(ARGS)

lint: .venv/test.stamp  ## format, lint, types, import contracts
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

models: .venv/test.stamp  ## rebuild every shipped model from its recipe, replacing version 1: ten minutes
	for name in digits breast-cancer help-topics digit-scenes; do $(BIN)/foldtrain build $$name --repository models --replace 1 || exit 1; done

bench-start: $(BENCH)/serve.stamp $(BENCH)/fold.stamp .venv/test.stamp  ## how soon the commands answer
	$(BENCH)/serve/bin/python -m tests.benchmarks.bench_start --fold $(BENCH)/fold --torch .venv

bench-bn: $(BENCH)/bn-rivals.stamp  ## whose population statistics are right, in sixteen difficult cases
	$(BENCH)/bn-rivals/bin/python -m tests.benchmarks.bench_bn

bench-build: $(BENCH)/training.stamp  ## how long digits take from data to published version, and how good it is
	$(BENCH)/training/bin/python -m tests.benchmarks.bench_build

bench-large: .venv/test.stamp  ## seconds and memory for weights of 1 GB, and of 2.2 GB beside the file
	$(BIN)/python -m tests.benchmarks.bench_large $(ARGS)

bench-fold: $(BENCH)/zoo.stamp $(BENCH)/fold-rivals.stamp  ## what folding removes and saves, next to other tools
	$(BENCH)/zoo/bin/python -m tests.benchmarks.bench_fold --rivals $(BENCH)/fold-rivals $(ARGS)

bench-remedies: .venv/test.stamp  ## what batches of two cost, and what each remedy brings back: two minutes
	$(BIN)/python -m tests.benchmarks.bench_remedies $(ARGS)

bench-schedule: .venv/test.stamp  ## throughput without tuning, next to every static batching of a grid: half an hour
	$(BIN)/python -m tests.benchmarks.bench_schedule $(ARGS)

bench-serve: .venv/test.stamp $(BENCH)/serve-rivals.stamp  ## what the server costs, next to other servers and to none
	$(BIN)/python -m tests.benchmarks.bench_serve --rivals $(BENCH)/serve-rivals $(ARGS)

bench-train: .venv/test.stamp  ## what our loop costs a step beyond a bare one: three minutes
	$(BIN)/python -m tests.benchmarks.bench_train

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serve.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/$(INSTALL) . && touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/$(INSTALL) '.[test]' && touch $@ .venv/serve.stamp

# One environment an extra (serve: none), so that a figure is measured with nothing installed that is not needed.
$(BENCH)/%.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(BENCH)/$* && $(BENCH)/$*/bin/$(INSTALL) '.$(if $(filter-out serve,$*),[$*])' && touch $@

$(BENCH)/zoo.stamp: pyproject.toml constraints.txt tests/zoo/requirements.txt
	$(PYTHON) -m venv --clear $(BENCH)/zoo && $(BENCH)/zoo/bin/$(INSTALL) '.[training]' -r tests/zoo/requirements.txt && touch $@

$(BENCH)/bn-rivals.stamp: pyproject.toml constraints.txt tests/benchmarks/bn_rivals.txt
	$(PYTHON) -m venv --clear $(BENCH)/bn-rivals && $(BENCH)/bn-rivals/bin/$(INSTALL) '.[training]' -r tests/benchmarks/bn_rivals.txt && touch $@

$(BENCH)/exporters.stamp: pyproject.toml constraints.txt tests/zoo/exporters.txt
	$(PYTHON) -m venv --clear $(BENCH)/exporters && $(BENCH)/exporters/bin/$(INSTALL) '.[fold]' -r tests/zoo/exporters.txt && touch $@

$(BENCH)/kserve.stamp: tests/contract/kserve_requirements.txt
	$(PYTHON) -m venv --clear $(BENCH)/kserve && $(BENCH)/kserve/bin/pip install --quiet -r $< && touch $@

$(BENCH)/fold-rivals.stamp: tests/benchmarks/rivals.txt
	$(PYTHON) -m venv --clear $(BENCH)/fold-rivals && $(BENCH)/fold-rivals/bin/pip install --quiet -r $< && touch $@

$(BENCH)/serve-rivals.stamp: tests/benchmarks/serve_rivals.txt constraints.txt
	$(PYTHON) -m venv --clear $(BENCH)/serve-rivals && $(BENCH)/serve-rivals/bin/pip install --quiet -c constraints.txt -r $< && touch $@
