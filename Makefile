# Two commands matter: `make demo` and `make test`. Both set everything up first.
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/ready  ## router + four simulated replicas + a RAG workload, under three policies; prints the table
	$(BIN)/radixgate demo

test: lint  ## lint, types and the whole suite
	@command -v curl >/dev/null || .ci/apt curl
	$(BIN)/pytest

lint: $(VENV)/ready  ## ruff (format and lint) and mypy strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/ready  ## measure the hot path's parts; writes build/bench.json
	$(BIN)/python -m loadgen.micro --json build/bench.json

$(VENV)/ready: pyproject.toml .ci/venv
	@.ci/venv $(VENV)

clean:  ## remove what the commands above made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
