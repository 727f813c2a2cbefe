"""Reading back the processor of an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_processor(folder: Path) -> Any:
    """Return a folder's processor as a user gets it.

    Qwen2.5-VL's has a part for videos that needs torchvision: without torchvision that part is left out.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    from nsft_exp.vlm.qwen25_vl import images_only

    try:
        return AutoProcessor.from_pretrained(folder, local_files_only=True)
    except ImportError:
        return images_only(
            AutoImageProcessor.from_pretrained(folder, local_files_only=True),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
            (folder / "chat_template.jinja").read_text("utf-8"),
        )
