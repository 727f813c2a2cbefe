"""Reading back the processor of an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_processor(folder: Path) -> Any:
    """Return a folder's processor as a user gets it.

    Qwen2.5-VL's has a part for videos that needs torchvision: without torchvision that part is left out.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, local_files_only=True)
    except ImportError:
        return _without_videos(folder)


def _without_videos(folder: Path) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    model_type = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    whole: Any = getattr(transformers, str(PROCESSOR_MAPPING_NAMES[model_type]))

    class WithoutVideos(whole):
        """The processor with a missing part, which the library's own constructor does not take."""

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return type(argument)

    return WithoutVideos(
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
        chat_template=(folder / "chat_template.jinja").read_text("utf-8"),
    )
