# Every target sets up what it needs. `make` alone says what there is.

VENV ?= .venv
SEED ?= 0
PYTHON ?=
WORKERS ?= 2

python := $(VENV)/bin/python
# The environment is made again when what is installed changes, not when a checker's setting does.
key := $(shell sed '/^\[tool\.ruff\]/,$$d' pyproject.toml | cksum | cut -d ' ' -f 1)
ready := $(VENV)/.capfilt-$(key)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup test lint demo bench clean

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1 \t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16
	@echo
	@echo "  VENV=DIR    environment to use or make (.venv)"
	@echo "  PYTHON=EXE  Python 3.11 or 3.12 to make it with (the first one found)"
	@echo "  SEED=N      world that the demo draws (0)"
	@echo "  WORKERS=N   processes that run the tests (2)"

setup: $(ready) ## make the environment

# Stealing keeps neighbours together, so that what a folder's tests share is made once or twice.
test: $(ready) ## run the tests
	$(python) -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: $(ready) ## ruff and mypy
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

demo: $(ready) ## draw a noisy world, bootstrap it, compare with the truth: minutes
	$(python) examples/demo.py --seed $(SEED) --out demo

bench: $(ready) ## run the benchmarks that take minutes; see benchmarks/README.md
	@set -e; for name in policy versus_transformers; do echo "$$name"; $(python) benchmarks/$$name.py; done

clean: ## remove what the targets made, the environment too if it is .venv
	rm -rf .venv demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# A name on the PATH proves little (a version manager's shim answers to versions it does not have, and
# a system's Python may lack venv), so each candidate has to show that it can do it.
define find_python
fits='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'; \
found=''; \
if [ -n "$(PYTHON)" ]; then candidates="$(PYTHON)"; else \
  candidates=''; \
  for name in python3.11 python3.12 python3; do \
    for folder in $$(echo "$$PATH" | tr ':' ' '); do candidates="$$candidates $$folder/$$name"; done; \
  done; \
fi; \
for candidate in $$candidates; do \
  if "$$candidate" -c "$$fits" >/dev/null 2>&1; then found="$$candidate"; break; fi; \
done; \
if [ -z "$$found" ]; then \
  echo "error: no Python 3.11 or 3.12 with venv was found" >&2; \
  echo "  fix: install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
  exit 2; \
fi
endef

$(ready):
	@if [ ! -x $(python) ]; then \
	  $(find_python); \
	  echo "making $(VENV) with $$found"; \
	  "$$found" -m venv $(VENV); \
	fi
	$(python) -m pip install --quiet --editable '.[dev]'
	@rm -f $(VENV)/.capfilt-*
	@touch $@
