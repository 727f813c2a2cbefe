"""For the vLLM test environment alone: two schemas that torchvision misses beside a CPU-only torch.

vLLM's LLaVA imports torchvision, whose CUDA build cannot load its extension there and stops at the operators
it would have registered. `make vllm-env` copies this file into .venv-vllm, whose start-up imports it.
"""

import importlib.abc
import sys
from typing import Any

ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareFirst(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is imported, so that other programs do not load torch."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Declare once, then leave the search to the others."""
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        self.library = torch.library.Library("torchvision", "DEF")
        self.library.define(f"nms{ARGUMENTS}")
        self.library.define(f"qnms{ARGUMENTS}")
        kept.append(self)


kept: list[DeclareFirst] = []
sys.meta_path.insert(0, DeclareFirst())
