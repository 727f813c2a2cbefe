"""Calls of language models behind servers of the OpenAI protocol: kept, counted, within a budget."""
