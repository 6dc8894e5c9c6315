# On a fresh machine: `make train`, `make test`. Each makes .venv first if it is missing or out of date.
PYTHON ?= python3
# More for the program behind a target: make train ARGS="--recipe qwen2.5-1.5b", make test ARGS="-m 'not slow'".
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help train test test-faults audit lint format lock clean

help:
	@echo "make train        train on ARC-AGI-2, the quickstart recipe; others with ARGS=\"--recipe NAME\""
	@echo "make test         run every test but the exhaustive ones; without the slow ones: ARGS=\"-m 'not slow'\""
	@echo "make test-faults  kill, starve and break runs in every way that has a test; an hour and more"
	@echo "make lint         check style and types"
	@echo "make format       format the code and fix what can be fixed automatically"
	@echo "make audit        look up the pinned versions among known vulnerabilities; needs a network"
	@echo "make lock         write requirements.lock again from pyproject.toml"
	@echo "make clean        remove .venv, builds and caches; runs/ is kept"

train: $(INSTALLED)
	$(BIN)/python launch/train.py $(ARGS)

# One test process a core, with one thread each: more would wait for each other.
test: export OMP_NUM_THREADS = 1
test: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto $(ARGS)

test-faults: export OMP_NUM_THREADS = 1
test-faults: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto -m "slow or not slow" tests/faults $(ARGS)

# In a separate environment, so that the auditor is not audited. --strict: what cannot be looked up is a failure.
audit:
	test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit \
		&& build/audit/bin/python -m pip install --disable-pip-version-check pip-audit; }
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements.lock

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "arcdist needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not. Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# torch is chosen here, by hand; the CUDA packages that it brings on Linux are pinned by itself and stay out of the lock.
lock: TORCH := 2.13.0
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --disable-pip-version-check torch==$(TORCH) 'setuptools>=77' '.[dev]'
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude arcdist \
		| grep -vE '^(nvidia|cuda|triton)' | sed 's/+cpu$$//' > requirements.lock
	rm -rf build/lock

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find arcdist launch tests -name __pycache__ -type d -exec rm -rf {} +
