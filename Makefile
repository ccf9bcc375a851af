PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-docs test-faults fuzz lint setup clean

demo: setup
	$(BIN)/capmix demo

# Files of tests are shared by two processes; of one file all tests are in the same one.
test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The code blocks of README.md and docs/; one page: `pytest -m docs -k getting-started tests/docs`.
test-docs: setup
	$(BIN)/python -m pytest -m docs tests/docs

# Flipped bits and failing storage: some 45 minutes.
test-faults: setup
	CAPMIX_FLIPS=1000 $(BIN)/python -m pytest -s tests/faults/test_flips.py
	CAPMIX_STORM_MINUTES=30 $(BIN)/python -m pytest -s tests/faults/test_storms.py

fuzz: setup
	$(BIN)/pip install --quiet atheris
	for target in shard_reader recipe_parser image_decoder; do \
	  $(BIN)/python fuzz/$$target.py --seconds 600 || exit 1; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[mini,dev]'
	touch $@

clean:
	rm -rf $(VENV) capmix-demo
