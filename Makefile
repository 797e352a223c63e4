# make demo   the comparison table of five methods, in minutes on a CPU
# make test   the whole test suite but what takes long, in minutes
# make long   the tests that take long: several hosts, schedulers, browser, LaTeX; as root, with .ci/debian-packages
# make lint   style and types
# make clean  remove what make and the tools made (results and runs stay)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test long lint clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/fmlora demo

# The deepspeed launcher starts whichever python comes first, and looks for ninja beside it. A file's tests share what
# they have made, so they stay together.
PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(OPTIONS)

test: $(VENV)/.installed-test
	$(PYTEST)

long: $(VENV)/.installed-long
	$(PYTEST) -m long

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "fmlora-dist needs Python 3.10 or newer; give one with PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of dependencies, made again when pyproject.toml changes. DS_BUILD_OPS=0: DeepSpeed compiles
# nothing on installation, so no C compiler is needed.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --editable '.[$*]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
