"""Benchmarks: questions from the official files, answers scored by the official rules.

A class per answer form; each reads its authors' file layout (its docstring names every file and field),
makes `Request`s, and scores one answer into counts whose sums make the metrics. None of them imports torch.
"""
