# `make demo` and `make test` are all the set-up there is: each makes .venv, installs, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# `make test BASE=origin/main` runs the tests that the changes since then can affect; without BASE all are run.
BASE ?=

# One line decides the set: the constraints file pins what was tested; pyproject states the honest ranges.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# `make peers` makes an environment for each library that cannot live in ours, `make peers verl` that of one.
ALL_PEERS := $(basename $(notdir $(wildcard tests/peers/*.txt)))
ifeq (peers,$(firstword $(MAKECMDGOALS)))
ASKED := $(or $(wordlist 2,99,$(MAKECMDGOALS)),$(ALL_PEERS))
$(foreach one,$(filter-out $(ALL_PEERS),$(ASKED)),$(error there is no peer $(one): $(ALL_PEERS)))
.PHONY: $(ASKED)
$(ASKED): %: .peers/%/.installed ;
endif

.peers/%/.installed: tests/peers/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

.PHONY: install demo test test-slow test-all peers test-peers lint docs-claims clean
install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m vantage.demo --out demo

test: $(STAMP)
	files=$(if $(BASE),"$$($(BIN)/python tools/impact.py $(BASE))") && \
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS) $$files

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

peers: $(addprefix .peers/,$(addsuffix /.installed,$(ASKED)))

# Fails where an environment of a peer is missing, instead of skipping its tests.
test-peers: $(STAMP)
	VANTAGE_PEERS=1 $(BIN)/python -m pytest -m peers $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs-claims: $(STAMP)
	$(BIN)/vantage claims table --out build/claims

clean:
	rm -rf $(VENV) .peers demo runs
