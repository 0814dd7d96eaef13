# Every command a person or CI needs. `make serve` and `make test` set up what they use on their own.
#   make serve BUNDLE=folder           another bundle than the default
#   make serve GPU=1 BUNDLE=folder     on a GPU; GPU=0.5: with half of one
PYTHON ?= python3
BUNDLE ?=
VENV := .venv
# onnxruntime and onnxruntime-gpu cannot be in one environment.
GPU_VENV := .venv-gpu
BIN := $(VENV)/bin
INSTALL := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PIP := $(BIN)/python $(INSTALL)
override GPU := $(or $(strip $(GPU)),0)
OPTIONS := $(if $(BUNDLE),--bundle "$(BUNDLE)")

.PHONY: serve bundle-for-gpu test test-all faults fuzz lint loadtest bench clean

ifeq ($(GPU),0)
serve: $(VENV)/.serve
	@exec $(BIN)/dragoman serve $(OPTIONS)
else
serve: bundle-for-gpu $(GPU_VENV)/.serve
	@exec $(GPU_VENV)/bin/dragoman serve --gpus $(GPU) $(OPTIONS)
endif

# Before two gigabytes are installed.
bundle-for-gpu:
	@echo "$(GPU)" | grep -Eqx '1(\.0*)?|0?\.(0[1-9]|[1-9])[0-9]*' || \
		{ echo "GPU is $(GPU): it takes 1, or a part of a GPU from 0.01 on, such as 0.5, or 0 for the CPU" >&2; exit 1; }
	@test -n "$(BUNDLE)" && test -f "$(BUNDLE)/manifest.json" && \
		! grep -Eq '"precision": *"int8"' "$(BUNDLE)/manifest.json" || \
		{ echo "a GPU needs a bundle in fp16, and none ships: make .venv/.dev, then" \
		".venv/bin/dragoman export en-de-base FOLDER --precision fp16, then make serve GPU=$(GPU) BUNDLE=FOLDER" >&2; exit 1; }

test: $(VENV)/.dev lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# The slow tests too: the larger model, replicas that die, whole comparisons.
test-all: test .gpu/.ready
	$(BIN)/pytest -n 2 --dist worksteal -m slow

# Two hundred random faults against the real service: ten minutes.
faults: $(VENV)/.dev
	$(BIN)/pytest tests/test_faults.py --capture=no --faults 200

# Ten thousand generated requests against the real service: five minutes. SEED=1: those of another time.
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --requests 10000 $(if $(SEED),--seed "$(SEED)")

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
	rm -rf $(VENV) $(GPU_VENV) .gpu .mypy_cache .pytest_cache .ruff_cache

# A virtual environment without torch.
$(VENV)/.serve: EXTRA := cpu
$(GPU_VENV)/.serve: EXTRA := gpu
$(VENV)/.serve $(GPU_VENV)/.serve: pyproject.toml constraints.txt
	@echo "setting up $(@D) (a minute or two, once)"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python $(INSTALL) --editable ".[$(EXTRA)]"
	@touch $@

# torch first: of what is installed afterwards, nothing then looks for a larger build of it.
$(VENV)/.dev: $(VENV)/.serve
	@$(PIP) torch==2.13.0
	@$(PIP) --editable ".[dev]"
	@touch $@

# What a pretended card is made of, on any machine: ONNX Runtime for CUDA beside the environment, and CUDA's headers.
.gpu/.ready: constraints.txt
	@rm -rf .gpu
	@$(PIP) --no-deps --target .gpu onnxruntime-gpu nvidia-cuda-runtime nvidia-cuda-crt
	@rm -rf .gpu/nvidia/*/lib .gpu/onnxruntime/capi/libonnxruntime_providers_tensorrt.so
	@touch $@

$(VENV)/.bench: $(VENV)/.serve
	@$(PIP) torch==2.13.0
	@$(PIP) --editable ".[bench]"
	@touch $@
