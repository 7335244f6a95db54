# make demo   set up .venv and fit the embedded screen
# make test   set up .venv, lint, run the tests
# make test PYTHON=python3.12   the same in .venv-3.12 with the newest releases
# also: coverage, lint, format, figures, docs, wheel, constraints, clean

.DEFAULT_GOAL := test
.PHONY: test coverage demo lint format figures docs wheel constraints clean

ifneq ($(filter-out clean,$(or $(MAKECMDGOALS),test)),)
ifeq ($(origin PYTHON),undefined)
INTERPRETER := $(shell scripts/find_python.sh python3 python3.11 python3.12 python3.13)
else
INTERPRETER := $(shell scripts/find_python.sh $(PYTHON))
endif
ifeq ($(INTERPRETER),)
$(error no usable Python: see the line above)
endif
VERSION := $(shell $(INTERPRETER) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif

VENV := .venv$(if $(filter undefined,$(origin PYTHON)),,-$(VERSION))
BIN := $(VENV)/bin
# Python 3.11 has its own pins; later versions share the newest releases.
CONSTRAINTS := constraints/$(if $(filter 3.11,$(VERSION)),python3.11,newest).txt
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS)
PYTEST_ARGS ?= -n 2 --dist loadfile

# One thread per worker: two workers on two cores are faster than four threads on two.
test: export OMP_NUM_THREADS ?= 1
test: export MKL_NUM_THREADS ?= 1
coverage: export OMP_NUM_THREADS ?= 1
coverage: export MKL_NUM_THREADS ?= 1

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(INTERPRETER) -m venv $(VENV)
	$(INSTALL) --quiet --upgrade pip
	$(INSTALL) --group test --group lint --editable .
	touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(INSTALL) --group doc
	touch $@

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Compiled kernels count as not covered; a third longer than the tests alone.
coverage: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS) --cov=pyrocell --cov-report=term:skip-covered

demo: $(VENV)/.installed
	$(BIN)/pyrocell demo

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/type_errors.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: $(VENV)/.installed
	$(BIN)/python scripts/render_figures.py

docs: $(VENV)/.documented
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Pin what is installed in $(VENV) now: run after upgrading it and passing the tests.
constraints: $(VENV)/.documented
	scripts/freeze.sh $(BIN)/python > $(CONSTRAINTS).new
	mv $(CONSTRAINTS).new $(CONSTRAINTS)

clean:
	rm -rf .venv .venv-* dist build docs/_build docs/generated docs/tutorials
	rm -rf .pytest_cache .ruff_cache .hypothesis
