# The two commands of the README: `make demo` and `make test`. Each sets up all it needs in .venv, once.
#   make test ARGS='-k config -x'    hands ARGS to pytest
#   make demo ARGS='--keep'          hands ARGS to pilotage demo
SHELL := /bin/bash
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SETUP := setup.cfg pyproject.toml

.PHONY: help venv demo test lint clean
help:
	@sed -n 's/^#   */  /p; s/^\([a-z]*\):.*## /  make \1    /p' $(MAKEFILE_LIST)

venv: $(VENV)/.stamp-test ## .venv with everything that tests and development need

demo: $(VENV)/.stamp-demo ## the whole loop on this machine: server, harvester, pilots, a plot
	$(BIN)/pilotage demo $(ARGS)

# Each step runs even when an earlier one failed, so that one run shows everything; the summary comes last.
test: $(VENV)/.stamp-test ## ruff, mypy and all tests
	@status=0; summary=''; \
	step() { \
	  local name=$$1 start=$$SECONDS outcome=passed; shift; \
	  printf '\n==> %s\n' "$$name"; \
	  "$$@" || { outcome=FAILED; status=1; }; \
	  printf -v summary '%s  %-12s %-7s %5d s\n' "$$summary" "$$name" "$$outcome" $$((SECONDS - start)); \
	}; \
	step 'ruff check' $(BIN)/ruff check .; \
	step 'ruff format' $(BIN)/ruff format --check .; \
	step 'mypy' $(BIN)/mypy; \
	step 'pytest' $(BIN)/python -m pytest -n 2 $(ARGS); \
	printf '\nSummary\n%s' "$$summary"; \
	exit $$status

lint: $(VENV)/.stamp-test ## ruff and mypy alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove what make, the tools and the tests made
	rm -rf $(VENV) .services build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .tox
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The packages of `test` include those of `demo`.
$(VENV)/.stamp-test: $(VENV)/.stamp-python $(SETUP)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(VENV)/.stamp-demo $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-python $(SETUP)
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.stamp-python:
	@set -euo pipefail; \
	usable() { command -v "$$1" >/dev/null && "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	if usable $(BIN)/python; then touch $@; exit 0; fi; \
	python=''; \
	for candidate in python3 python3.13 python3.12 python3.11; do \
	  if usable "$$candidate"; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo 'Pilotage needs Python 3.11 or newer: install it and try again.' >&2; exit 1; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	  if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "$$python has no venv module: install it (Debian, Ubuntu: apt-get install $$package) and try again." >&2; exit 1; \
	  fi; \
	  echo "$$python has no venv module: installing $$package"; \
	  apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$package"; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV); \
	touch $@
