"""LLaVA models of the Hugging Face family: cheap to construct; torch is imported when one is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsft_exp.conversation import prompt_style
from nsft_exp.records import UserError

if TYPE_CHECKING:
    from nsft_exp.vlm.loaded import LoadedHF

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


class HFModel:
    """A `LlavaForConditionalGeneration` in a folder, or on the hub under `path` at `revision`.

    `dtype` is what the weights are held in. `batch_size` is how many answers are generated at once. Images
    are made square by `preprocessing` (`pad`: as LLaVA was trained; `crop`: as the hub's processor does)
    after their EXIF orientation is applied or ignored. `max_length` bounds prompt and answer together (None:
    the model's own limit). Weights are read from safetensors and no code is taken from the model's folder.
    """

    def __init__(
        self,
        path: str | None,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 32,
        preprocessing: str = "pad",
        exif: str = "apply",
        prompt_style: str = "vicuna_v1",
        max_length: int | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.path = path
        self.revision = revision
        self.dtype = dtype
        self.device = device
        self.batch_size = batch_size
        self.preprocessing = preprocessing
        self.exif = exif
        self.prompt_style = prompt_style
        self.max_length = max_length
        self.local_files_only = local_files_only
        self._check()

    def _check(self) -> None:
        prompt_style(self.prompt_style)
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"vlm.dtype={self.dtype}: there is no such type; take float32 or bfloat16")
        if self.preprocessing not in ("pad", "crop"):
            raise UserError(
                f"vlm.preprocessing={self.preprocessing}: there is no such choice; take pad or crop"
            )
        if self.exif not in ("apply", "ignore"):
            raise UserError(f"vlm.exif={self.exif}: there is no such choice; take apply or ignore")
        if self.batch_size < 1:
            raise UserError(f"vlm.batch_size={self.batch_size}: must be at least 1")

    def folder(self) -> Path:
        """The folder with the model's files, fetched from the hub when `path` is not a folder here."""
        if self.path is None:
            raise UserError("vlm.path has no value; name a folder or a model of the hub")
        if Path(self.path).is_dir():
            return Path(self.path)
        if self.path.startswith((".", "/", "~")) or self.path.count("/") != 1:
            raise UserError(f"{self.path}: there is no such model folder; check vlm.path")
        return Path(_fetched(self.path, self.revision, self.local_files_only))

    def files(self) -> list[Path]:
        """The model's files: weights, configuration, tokenizer."""
        folder = self.folder()
        return sorted(p for pattern in PATTERNS for p in folder.glob(pattern) if p.is_file())

    def load(self, adapters: Sequence[Path] = (), device: str | None = None) -> LoadedHF:
        """Load the model with the trained parts of these train-stage folders on it, in order.

        Raises UserError when the folder holds no LLaVA model or a trained part does not fit it.
        """
        from nsft_exp.vlm import loaded

        folder = loaded.model_folder(adapters) or self.folder()
        model = loaded.read_model(folder, self.dtype)
        return self.finish(model, loaded.read_tokenizer(folder), adapters, device)

    def finish(self, model: Any, tokenizer: Any, adapters: Sequence[Path], device: str | None) -> LoadedHF:
        """Put the adapters on a model, move it to its device and dress it as LoadedHF."""
        from nsft_exp.vlm import loaded

        model = loaded.with_adapters(model, adapters)
        where = loaded.device_named(device or self.device)
        return loaded.LoadedHF(
            model.to(where).eval(),
            tokenizer,
            style=prompt_style(self.prompt_style),
            preprocessing=self.preprocessing,
            exif=self.exif,
            batch_size=self.batch_size,
            max_length=self.max_length,
        )


def _fetched(path: str, revision: str | None, local_files_only: bool) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return snapshot_download(
            path, revision=revision, allow_patterns=PATTERNS, local_files_only=local_files_only
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: the model cannot be fetched ({reason}); check vlm.path and vlm.revision"
        ) from error
