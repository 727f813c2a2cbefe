"""Vision-language models: Hugging Face LLaVA models, and small ones made from scratch."""
