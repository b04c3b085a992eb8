# Two commands matter: `make demo` and `make test`. Both set everything up first.
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench routers herding chaos gpu-check gpu-bench clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "%-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/ready  ## router + four simulated replicas + a RAG workload, under three policies; prints the table
	$(BIN)/radixgate demo

test: lint  ## lint, types and the whole suite
	@command -v curl >/dev/null || .ci/apt curl
	@.ci/redis $(VENV)
	$(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/ready-dev  ## ruff (format and lint) and mypy strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/ready  ## measure the hot path's parts; writes build/bench.json
	$(BIN)/python -m loadgen.micro --json build/bench.json

routers: $(VENV)/ready  ## one router, three over one tree, three by themselves; TRACE=FILE adds a request trace
	@.ci/redis $(VENV)
	$(BIN)/python -m loadgen.routers $(if $(TRACE),--trace $(TRACE)) --json build/routers.json

herding: $(VENV)/ready  ## how evenly four routers spread a burst, with a shared load ledger and without
	@.ci/redis $(VENV)
	$(BIN)/python -m loadgen.herding --json build/herding.json

chaos: $(VENV)/ready-dev  ## break every part under load, for minutes, and audit what the others believe (in `make test`: briefly)
	@.ci/redis $(VENV)
	RADIXGATE_CHAOS=full $(BIN)/pytest tests/chaos

gpu-check: $(VENV)/ready-dev  ## the tests that need an NVIDIA GPU; fails without one
	RADIXGATE_GPU=required TRITON_INTERPRET=0 $(BIN)/pytest tests/gpu

gpu-bench: $(VENV)/ready-dev  ## measure the GPU, then the kernels and the engine against it; writes build/gpu_bench.json
	$(BIN)/python -m loadgen.gpu --json build/gpu_bench.json

$(VENV)/ready: pyproject.toml .ci/venv
	@.ci/venv $(VENV)

$(VENV)/ready-dev: pyproject.toml .ci/venv
	@.ci/venv $(VENV) dev

clean:  ## remove what the commands above made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
