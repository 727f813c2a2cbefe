"""Writing results for other programs: data sets (TRL, LLaMA-Factory), merged models (transformers, vLLM)."""
