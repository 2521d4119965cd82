# `make quickstart`: install into .venv and run the main job. `make test`: install and run the tests.
# `make chain`: all stages after one another, SFT -> pairs -> DPO -> RLVR.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart chain test lint clean

quickstart: $(VENV)/.installed
	$(BIN)/posttrain run recipes/quickstart/pipeline.yaml

chain: $(VENV)/.installed
	$(BIN)/posttrain run recipes/chain/pipeline.yaml

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by exact version: without it, another package's range would take the newest CUDA build.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
