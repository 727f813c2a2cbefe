"""How well a sentence fits an image: by CLIP, or by what the VLM itself says when asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from nsft_exp.images import Preprocessing, open_image
from nsft_exp.interfaces import LoadedVLM
from nsft_exp.pairing.claims import Claims, odds, yes_or_no
from nsft_exp.records import Request, Sample, UserError

if TYPE_CHECKING:
    from torch import Tensor


class Scorer(Protocol):
    """An image-text scorer; only the order of scores of one image matters."""

    def scores(self, texts: Sequence[tuple[Sample, str]], vlm: LoadedVLM) -> list[float]:
        """Return how well each text fits its sample's image; higher is better. `vlm` is what answers."""


class Clip:
    """The cosine of CLIP's image and text embeddings, from a `CLIPModel` in the folder `path`.

    Texts are cut at the model's limit (77 tokens). Images are cropped in the middle, as the model's own
    processor does.
    """

    def __init__(self, path: str | None, device: str = "auto", batch_size: int = 64) -> None:
        if path is None:
            raise UserError(
                "pairing.scorer.path: is not set; name the folder of a CLIP model, or take "
                "pairing=sentence_tree_yes"
            )
        self.path, self.device, self.batch_size = path, device, batch_size
        self._loaded: tuple[Any, Any] | None = None
        self._loading = Lock()  # several threads may ask

    def scores(self, texts: Sequence[tuple[Sample, str]], vlm: LoadedVLM) -> list[float]:
        """Return cosines in [-1, 1]. Raises UserError where the folder holds no CLIP model."""
        import torch

        model, tokenizer = self._load()
        seen: dict[str, Tensor] = {}
        found: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            some = texts[start : start + self.batch_size]
            with torch.inference_mode():
                images = torch.cat([self._image(model, str(sample.image), seen) for sample, _ in some])
                limit = model.config.text_config.max_position_embeddings
                words = tokenizer(
                    [text for _, text in some],
                    padding=True,
                    truncation=True,
                    max_length=limit,
                    return_tensors="pt",
                ).to(model.device)
                written = model.text_projection(model.text_model(**words).pooler_output)
                found += torch.cosine_similarity(images, written).tolist()
        return found

    def _image(self, model: Any, image: str, seen: dict[str, Tensor]) -> Tensor:
        """The image's embedding [1, D]."""
        import torch

        if image not in seen:
            size = model.config.vision_config.image_size
            pixels = torch.from_numpy(Preprocessing(size, "crop")(open_image(image)))[None].to(model.device)
            seen[image] = model.visual_projection(model.vision_model(pixels).pooler_output)
        return seen[image]

    def _load(self) -> tuple[Any, Any]:
        with self._loading:
            self._loaded = self._loaded or self._read()
        return self._loaded

    def _read(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoTokenizer, CLIPModel

        if not (Path(self.path) / "config.json").is_file():
            raise UserError(f"{self.path}: there is no CLIP model; pairing.scorer.path must name its folder")
        gpu = self.device == "auto" and torch.cuda.is_available()
        model = CLIPModel.from_pretrained(self.path, local_files_only=True, use_safetensors=True)
        model = model.eval().to("cuda" if gpu else "cpu" if self.device == "auto" else self.device)
        return model, AutoTokenizer.from_pretrained(self.path, local_files_only=True)


class Yes:
    """The VLM's own log p(Yes) - log p(No) when asked whether the image shows the text (VQAScore, Lin et al.
    2024).

    With a `lexicon` (the toy world's words) the VLM is asked for each object that the text names, in the
    wording of its yes/no questions, and the answers' mean counts; a text without one gets 0.
    """

    def __init__(self, lexicon: str | None = None) -> None:
        self.claims = Claims(lexicon)

    def scores(self, texts: Sequence[tuple[Sample, str]], vlm: LoadedVLM) -> list[float]:
        """Return log-odds in nats. Raises UserError for an engine that tells no likelihoods."""
        requests: dict[tuple[str, str], Request] = {}
        asked = [[(sample.id, q) for q in self.claims.questions(text)] for sample, text in texts]
        for (sample, _), keys in zip(texts, asked, strict=True):
            for key in keys:
                name = f"{sample.id}|score{len(requests)}"
                requests.setdefault(key, yes_or_no(name, sample, key[1]))
        found = {name: odds(reply) for name, (reply, *_) in vlm.generate(requests.values())}
        return [sum(found[requests[key].id] for key in keys) / max(1, len(keys)) for keys in asked]
