"""Models of the Hugging Face family: cheap to construct; torch is imported when one is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nsft_exp.conversation import prompt_style as style_named
from nsft_exp.records import UserError

if TYPE_CHECKING:
    import torch

    from nsft_exp.interfaces import LoadedVLM
    from nsft_exp.vlm.family import Family
    from nsft_exp.vlm.loaded import LoadedHF

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]


class HFModel:
    """A `LlavaForConditionalGeneration` in a folder, or on the hub under `path` at the commit `revision`.

    `dtype` is what the weights are held in. `batch_size` is how many answers are generated at once. Images
    are made square by `preprocessing` (`pad`: as LLaVA was trained; `crop`: as the hub's processor does)
    after their EXIF orientation is applied or ignored. `max_length` bounds prompt and answer together (None:
    the model's own limit). Weights are read from safetensors and no code is taken from the model's folder.

    `engine` answers (training is always here): `hf`; `vllm` in a process of its own by the interpreter
    `python` (None: this one), which needs vLLM and nothing of ours; or the `server` of that node, which
    answers for the base alone.

    Other families are subclasses that name what differs. Where `preprocessing` or `prompt_style` is None it
    is the family's first.
    """

    model_type: ClassVar[str] = "llava"
    preprocessings: ClassVar[tuple[str, ...]] = ("pad", "crop")
    prompt_styles: ClassVar[tuple[str, ...]] = ("vicuna_v1",)
    unquantized: ClassVar[tuple[str, ...]] = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    """What keeps its precision where the language model is quantized: names from the top."""

    def __init__(
        self,
        path: str | None,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 32,
        preprocessing: str | None = None,
        exif: str = "apply",
        prompt_style: str | None = None,
        max_length: int | None = None,
        local_files_only: bool = False,
        engine: str = "hf",
        python: str | None = None,
        server: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.revision = revision
        self.dtype = dtype
        self.device = device
        self.batch_size = batch_size
        self.preprocessing = preprocessing or self.preprocessings[0]
        self.exif = exif
        self.prompt_style = prompt_style or self.prompt_styles[0]
        self.max_length = max_length
        self.local_files_only = local_files_only
        self.engine = engine
        self.python = python
        self.server = server
        self._check()

    def _check(self) -> None:
        for key, choices in (
            ("dtype", ("float32", "bfloat16", "float16")),
            ("preprocessing", self.preprocessings),
            ("prompt_style", self.prompt_styles),
            ("exif", ("apply", "ignore")),
            ("engine", ("hf", "vllm", "server")),
        ):
            if getattr(self, key) not in choices:
                raise UserError(
                    f"vlm.{key}={getattr(self, key)}: there is no such choice; take {' or '.join(choices)}"
                )
        if self.batch_size < 1:
            raise UserError(f"vlm.batch_size={self.batch_size}: must be at least 1")

    def family(self, config: Any) -> Family:
        """How a model of this configuration reads images."""
        from nsft_exp.vlm.llava import LlavaFamily

        return LlavaFamily(config, self.preprocessing)

    def folder(self) -> Path:
        """The folder with the model's files, fetched from the hub when `path` is not a folder here.

        Raises UserError for a model of the hub without a commit: what it holds would change under the user.
        """
        if self.path is None:
            raise UserError("vlm.path has no value; name a folder or a model of the hub")
        if Path(self.path).is_dir():
            return Path(self.path)
        if self.path.startswith((".", "/", "~")) or self.path.count("/") != 1:
            raise UserError(f"{self.path}: there is no such model folder; check vlm.path")
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise UserError(
                f"{self.path}: vlm.revision={self.revision} is no commit; give the 40 hex digits that the "
                f"model's page shows under Files, or a folder as vlm.path"
            )
        return Path(_fetched(self.path, self.revision, self.local_files_only))

    def files(self) -> list[Path]:
        """The model's files: weights, configuration, tokenizer."""
        folder = self.folder()
        return sorted(p for pattern in PATTERNS for p in folder.glob(pattern) if p.is_file())

    def load(
        self, adapters: Sequence[Path] = (), device: str | None = None, quantization: str | None = None
    ) -> LoadedHF:
        """Load the model with the trained parts of these train-stage folders on it, in order.

        `quantization` holds the language model's linear layers in fewer bits (`nf4`: QLoRA's 4-bit type).
        Raises UserError when the folder holds no model of this family or a trained part does not fit it.
        """
        from nsft_exp.vlm import reading

        where, whole = reading.device_named(device or self.device), reading.model_folder(adapters)
        read = self.read(whole, where, quantization) if whole else self.base(where, quantization)
        return self.finish(*read, adapters, device)

    def answerer(self, adapters: Sequence[Path] = ()) -> LoadedVLM:
        """Return what answers with the model and these trained parts: the loaded model, or its engine."""
        if self.engine == "hf":
            return self.load(adapters)
        if self.engine == "server":
            from nsft_exp.vlm.server import ServerEngine

            self.check_served(adapters)
            return ServerEngine(self.server or {}, self, self.exif)
        from nsft_exp.vlm.vllm_engine import VllmEngine

        return VllmEngine(self, adapters)

    def usage(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return what the calls with these keys to its server have cost."""
        from nsft_exp.vlm.server import ServerEngine

        return ServerEngine(self.server or {}).usage(keys)

    def check_served(self, adapters: Sequence[Any]) -> None:
        """Raise UserError where a server would have to answer for a model that is trained here."""
        if self.engine == "server" and adapters:
            raise UserError(
                "vlm.engine=server: the server has the base, not what is trained here; take vlm.engine=vllm, "
                "or serve what nsft export-model writes and take nsft evaluate"
            )

    def without_weights(self) -> LoadedHF:
        """Return what reads images and writes conversations as the loaded model does, but cannot answer."""
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

        from nsft_exp.vlm import loaded, reading

        folder = self.folder()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config)
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return self._dressed(loaded.LoadedHF, model, reading.read_tokenizer(folder))

    def base(self, device: torch.device, quantization: str | None) -> tuple[Any, Any]:
        """Return the untrained model and its tokenizer."""
        return self.read(self.folder(), device, quantization)

    def read(self, folder: Path, device: torch.device, quantization: str | None = None) -> tuple[Any, Any]:
        """Return the model and the tokenizer of a folder."""
        from nsft_exp.vlm import reading

        options = (
            reading.quantized(quantization, self.dtype, self.unquantized, device) if quantization else {}
        )
        model = reading.read_model(folder, self.dtype, self.model_type, **options)
        return model, reading.read_tokenizer(folder)

    def finish(self, model: Any, tokenizer: Any, adapters: Sequence[Path], device: str | None) -> LoadedHF:
        """Put the adapters on a model, move it to its device and dress it as LoadedHF."""
        from nsft_exp.vlm import loaded, reading

        model = reading.with_adapters(model, adapters)
        if not getattr(model, "is_quantized", False):  # a quantized one is where it was loaded to
            model = model.to(reading.device_named(device or self.device))
        return self._dressed(loaded.LoadedHF, model.eval(), tokenizer)

    def _dressed(self, kind: type[LoadedHF], model: Any, tokenizer: Any) -> LoadedHF:
        return kind(
            model,
            tokenizer,
            self.family(model.config),
            style=style_named(self.prompt_style),
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
