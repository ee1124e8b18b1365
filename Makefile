# Everything starts here: `make demo` and `make test` need Linux, Python 3.10+ with venv, and make; they bring the rest.
.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench tables clean

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

help:        ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 16

$(STAMP): pyproject.toml scripts/install.sh
	@bash scripts/install.sh "$(PYTHON)" "$(VENV)"
	@touch $(STAMP)

install: $(STAMP)   ## virtual environment with a CPU torch, edgewm and the tools that tests use

demo: $(STAMP)      ## build, profile, judge and run the reference model (under 6 minutes)
	@$(RUN) -m edgewm demo -o out/demo

test: $(STAMP)      ## the tests (under 8 minutes); PYTEST="-k words" passes options on
	@$(RUN) -m pytest -q -n auto --dist loadfile $(PYTEST)

lint: $(STAMP)      ## ruff
	@$(RUN) -m ruff check .

bench: $(STAMP)     ## measure this machine (needs the bench extra) and refresh the tables of README
	@$(RUN) -m pip install -q -e '.[bench]'
	@$(RUN) benchmarks/plan.py
	@$(RUN) benchmarks/growth.py
	@$(RUN) benchmarks/instructions.py
	@$(RUN) benchmarks/tables.py

tables: $(STAMP)    ## refresh the tables of README from benchmarks/results
	@$(RUN) benchmarks/tables.py

clean:       ## remove everything that was made here
	rm -rf $(VENV) out build dist .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
