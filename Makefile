# What a newcomer types. `make quickstart` and `make test` need Python 3.11 and nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q
# Most of a test with engines is their start, which uses one core: two at a time take little more than half as long.
PARALLEL ?= -n 2 --dist loadfile
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
# Without AVX-512 a bf16 product is a hundred times slower than an fp32 one is with it.
QUICKSTART := specs/quickstart$(shell grep -qw avx512f /proc/cpuinfo || echo -avx2).yaml
LANGUAGE_SERVER := tests/editor/node_modules/.package-lock.json
export PYTHON

.PHONY: quickstart install test test-core test-full check bench-core bench-datagen bench-train bench-losses bench-peagle bench-scale format schema docs clean

quickstart: .venv/.installed-cpu  ## install, then build a speculator for SmolLM2-135M-Instruct on two cores
	$(BIN)/specc build $(QUICKSTART)

install: .venv/.installed-cpu $(LANGUAGE_SERVER)  ## .venv with specc, the CPU engines and the developer's tools

.venv/.installed-cpu: pyproject.toml tools/install.sh
	tools/install.sh cpu

$(LANGUAGE_SERVER): tests/editor/package-lock.json | .venv/.installed-cpu
	$(BIN)/npm ci --prefix tests/editor

test: install  ## every test but the minutes-long ones, engines included (three quarters of an hour on two cores)
	$(PYTEST) $(PARALLEL) -m "not full" tests

test-core: install  ## what needs no torch (some three minutes)
	$(PYTEST) $(PARALLEL) -m "not engine and not full and not install" tests

test-full: install  ## everything: the quickstart and every command of the README too
	$(PYTEST) $(PARALLEL) tests

check: .venv/.installed-cpu  ## lint, types, imports, the committed schema and reference, and the pages' links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/specc schema --check
	$(BIN)/python tools/docs.py --check
	$(MKDOCS) build --quiet

bench-core: .venv/.installed-cpu  ## how long the compiler takes, and what it does not read again (three minutes)
	$(BIN)/python tools/bench/core.py

bench-datagen: .venv/.installed-cpu  ## the data stages against vLLM alone, as ratios of one run
	$(BIN)/python tools/bench/datagen.py

bench-train: .venv/.installed-cpu  ## the stage `draft` against plain loops over the same batches, as ratios of one run
	$(BIN)/python tools/bench/train.py

bench-losses: .venv/.installed-cpu  ## the chunked losses against plain torch, in time and memory (a minute)
	$(BIN)/python tools/bench/losses.py

bench-peagle: .venv/.installed-cpu  ## a P-EAGLE step with eight depths against one depth, in memory and time (a minute)
	$(BIN)/python tools/bench/peagle.py

bench-scale: .venv/.installed-cpu  ## memory with ten times the rows, and a plan of a million rows
	$(BIN)/python tools/bench/scale.py

format: .venv/.installed-cpu  ## let ruff put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: .venv/.installed-cpu  ## write the published schema anew from the models
	$(BIN)/specc schema > schema/speculator.v1.schema.json
	$(BIN)/specc schema --lock > schema/lock.v1.schema.json

docs: .venv/.installed-cpu  ## write the generated reference anew, and build all pages into build/docs
	$(BIN)/python tools/docs.py
	$(MKDOCS) build --quiet

clean:  ## remove the environment and this checkout's store
	chmod -R u+w .specc 2>/dev/null || true
	rm -rf .venv .specc build/docs tests/editor/node_modules
