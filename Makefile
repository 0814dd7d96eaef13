# Every command a person or CI needs. `make serve` and `make test` set up what they use on their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: serve test test-all faults lint loadtest bench clean

serve: $(VENV)/.serve
	@exec $(BIN)/dragoman serve

test: $(VENV)/.dev lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# The slow tests too: the larger model, replicas that die, whole comparisons.
test-all: test
	$(BIN)/pytest -n 2 --dist worksteal -m slow

# Two hundred random faults against the real service: ten minutes.
faults: $(VENV)/.dev
	$(BIN)/pytest tests/test_faults.py --capture=no --faults 200

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

loadtest: $(VENV)/.dev
	$(BIN)/dragoman loadtest --users 16 --seconds 60
	$(BIN)/dragoman loadtest --rate 20 --seconds 60 --shape spike --bulk 1

bench: $(VENV)/.bench
	$(BIN)/dragoman bench

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

# A virtual environment without torch.
$(VENV)/.serve: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a minute or two, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

# torch first: of what is installed afterwards, nothing then looks for a larger build of it.
$(VENV)/.dev: $(VENV)/.serve
	@$(PIP) torch==2.13.0
	@$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/.bench: $(VENV)/.serve
	@$(PIP) torch==2.13.0
	@$(PIP) --editable ".[bench]"
	@touch $@
