"""Compare continual SFT, DPO and nSFT on vision-language models, on equal terms."""

__version__ = "0.1.0"
