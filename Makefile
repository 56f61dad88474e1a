# Two commands: `make demo` (core only) and `make test` (everything). A second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
RECIPE := pyproject.toml constraints.txt
# Files go whole to one of two processes (a file's tests share what it made), those with slow tests first: tests/conftest.py.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test quick edge lint format docs clean

help:            ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1  /p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.core            ## the whole road on handwritten digits, offline, about two minutes
	$(BIN)/equipoise demo

test: $(VENV)/.dev            ## the whole suite, slow tests too
	$(PYTEST) --durations=50

quick: $(VENV)/.dev            ## the suite without its slow tests
	$(PYTEST) -m "not slow" -q

edge: $(VENV)/.edge            ## tests of ExecuTorch and LiteRT, whose extras the suite goes without
	EQUIPOISE_LITERT_PYTHON=$(CURDIR)/$(VENV)-litert/bin/python $(PYTEST) tests/runtimes tests/ship/test_card.py tests/ship/test_artifact.py \
		-k "executorch or litert or edge"

lint: $(VENV)/.dev            ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev            ## let ruff set the layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev            ## all pages as a site, in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:            ## remove the environment and the caches
	rm -rf $(VENV) $(VENV)-litert site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps make a second call instant; editing pyproject.toml or constraints.txt installs anew.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(RECIPE) | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(RECIPE) | $(BIN)/python
	$(PIP) --editable ".[dev,openvino,images,text,translation,driving,tensorboard,pandas,plot,isolate,serve,docs]"
	$(PIP) --no-deps timm torchvision  # architectures of the zoo; what they depend on would bring another torch
	@touch $@ $(VENV)/.core

$(VENV)/.edge: $(RECIPE) | $(VENV)/.dev
	$(PIP) --editable ".[executorch,litert]"
	$(PYTHON) -m venv $(VENV)-litert
	$(VENV)-litert/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt) litert-torch==0.10.0
	@touch $@
