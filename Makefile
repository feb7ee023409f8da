# `make setup` makes the ground that all else stands on; each target below makes it first, which is quick when it is there.
# ARGS are passed on: make test ARGS="-k pack", make bench ARGS="--runs 3", make demo ARGS="--keep".

VENV ?= .venv
PYTHON ?= python3
ARGS ?=
export VENV PYTHON

bin := $(VENV)/bin

.PHONY: help setup demo test check format bench constraints clean

help:
	@echo "make setup        what a checkout needs: Debian packages, $(VENV) with pinned Python packages, torrentfs itself"
	@echo "make demo         a real Python job from two mounts on this machine"
	@echo "make test         the tests (as root: the mounts and network namespaces too)"
	@echo "make check        format, lint, types, import rules"
	@echo "make bench        a short benchmark beside ext4; make bench ARGS=--help"
	@echo "make format       format and fix what ruff can"
	@echo "make constraints  pin the newest Python packages"
	@echo "make clean        remove what the above made in this checkout"

setup:
	@contrib/setup

demo: setup
	@$(bin)/python -m contrib.demo $(ARGS)

test: setup
	@$(bin)/python -m pytest $(ARGS)

check: setup
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

format: setup
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

bench: setup
	@$(bin)/python -m contrib.bench $(ARGS)

constraints:
	contrib/pin

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
