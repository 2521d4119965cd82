# `make quickstart`: install into .venv and run the main job.
# `make chain`: all stages one after another, SFT -> pairs -> DPO -> RLVR.
# `make fast`: lint and the tests that take under two minutes on two cores; for every commit.
# `make test`: lint and all tests but the exhaustive ones, which `make exhaustive` runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart chain fast test exhaustive lint clean

quickstart: $(VENV)/.installed
	$(BIN)/posttrain run recipes/quickstart/pipeline.yaml

chain: $(VENV)/.installed
	$(BIN)/posttrain run recipes/chain/pipeline.yaml

# What `make fast` leaves out: the markers of tests/conftest.py, KINDS.
SLOW := exhaustive or slurm or ranks or browser or data or interpreter or slow or gpu
PYTEST = $(BIN)/python -m pytest -q -n 2

fast: lint
	$(PYTEST) --dist worksteal -m "not ($(SLOW))" $(PYTEST_ARGS)

test: lint
	$(PYTEST) --dist loadfile -m "not exhaustive" $(PYTEST_ARGS)

exhaustive: $(VENV)/.installed-test
	$(PYTEST) --dist worksteal -m exhaustive $(PYTEST_ARGS)

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

# DeepSpeed compiles one of its operators when it is first used, which takes minutes: a test that is ended
# meanwhile leaves a lock that all later ones wait for. tests/conftest.py names the folder, too.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e ".[test]"
	rm -rf $(VENV)/torch_extensions
	TORCH_EXTENSIONS_DIR=$(CURDIR)/$(VENV)/torch_extensions $(BIN)/python -c \
	  "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load(verbose=False)"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
