"""What a patch shows, in the language model's own words: the sum of their embeddings.

LLaVA's first stage trains the projector alone, until a finished language model can read what it says. Here
the language model is new, so the projector is told what to say before: a question's noun and the patches
that show such an object are then alike from the beginning, and looking for one is learnt early in every run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nsft_exp.toy.world import lexicon

WEIGHTS = {"what": 1.0, "plural": 0.7, "color": 0.7, "size": 0.5, "glyph": 1.0, "place": 1.0, "scene": 0.5}
"""What is looked for by its noun is to be heard best; to count is to look for the plural."""


class PatchWords:
    """The words' vectors: of each the mean of its pieces' embeddings, of the table [vocabulary, width]."""

    def __init__(self, embeddings: Tensor, tokenizer: Any) -> None:
        self.embeddings, self.tokenizer = embeddings.detach().clone(), tokenizer
        words = lexicon()
        nothing = torch.zeros(2, embeddings.shape[1])
        plurals = [category["plural"] for category in words["categories"].values()]
        self.vectors = {
            "what": torch.cat([nothing[:1], self._of(["sign", *words["categories"]])]),
            "plural": torch.cat([nothing, self._of(plurals)]),
            "color": self._of(words["colors"]),
            "size": self._of(words["sizes"]),
            "glyph": self._of(words["glyphs"]),
            "place": self._of(words["places"]),
            "scene": self._of(words["scenes"]),
        }

    def _of(self, texts: Iterable[Any]) -> Tensor:
        pieces = [self.tokenizer(str(text), add_special_tokens=False).input_ids for text in texts]
        return torch.stack([self.embeddings[torch.tensor(ids)].mean(0) for ids in pieces])

    def __call__(self, **numbers: Tensor) -> Tensor:
        """Return the weighted sum [..., width] of the words with these numbers [...]; below 0: none."""
        return torch.stack([self._said(kind, number) for kind, number in numbers.items()]).sum(0)

    def _said(self, kind: str, number: Tensor) -> Tensor:
        found = WEIGHTS[kind] * self.vectors[kind][number.clamp(min=0)]
        return found * (number >= 0)[..., None]
