"""Own answer to the image against own answer to a spoiled view of it (SeVa, Zhu et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar

from nsft_exp.interfaces import LoadedVLM
from nsft_exp.pairing.gt import calls, question
from nsft_exp.records import Decoding, Preference, Reply, Request, Sample, UserError
from nsft_exp.view import drawn, view_named


class View:
    """Chosen = the VLM's answer to the image, rejected = its answer to the image under `view`.

    The ground truth is not read. What the view draws at random comes from (`seed`, the sample's id); the
    other arguments say how the VLM answers, as for `pairing=gt`. Raises UserError for a view that does not
    exist.
    """

    needs_vlm: ClassVar[bool] = True
    needs_hf: ClassVar[bool] = True
    """Requests are about views, which only an engine that takes the vision tower's input can answer."""

    def __init__(
        self,
        view: str = "diffusion:500",
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        if view_named(view).kind == "clean":
            raise UserError("pairing.view=clean: both answers would be to the same image; take diffusion:500")
        self.view, self.seed = view, seed
        self.decoding = Decoding(max_new_tokens, temperature, top_p, seed=seed)

    def pairs(self, samples: Iterable[Sample], vlm: LoadedVLM | None) -> Iterator[Preference]:
        """Yield one Preference for every sample, in the order in which the VLM answers.

        Status `ok`; `equal`: the two answers are the same text; `empty`: one of them is no text; `no_image`:
        the sample has none. Raises UserError when an answer is missing.
        """
        if vlm is None:
            raise UserError("pairing=view: there is no VLM to answer; choose one with vlm=...")
        waiting: dict[str, Sample] = {}
        for sample in samples:
            if sample.image is None:
                yield Preference(sample.id, "no_image", "", "")
            else:
                waiting[sample.id] = sample
        for name, chosen, rejected in answered_twice(vlm, map(self._requests, waiting.values())):
            yield self._pair(waiting.pop(name), chosen, rejected)
        if waiting:
            raise UserError(
                f"pairing=view: record {next(iter(waiting))}: the VLM gave no answer; run it again"
            )

    def _requests(self, sample: Sample) -> tuple[Request, Request]:
        clean = question(sample, self.decoding)
        seen = drawn(self.view, self.seed, sample.id)
        return clean, replace(clean, id=f"{clean.id}|{self.view}", view=seen)

    def _pair(self, sample: Sample, clean: Reply, spoiled: Reply) -> Preference:
        seen = drawn(self.view, self.seed, sample.id)
        return preference(sample.id, clean, spoiled, rejected_view=seen)


def answered_twice(
    vlm: LoadedVLM, pairs: Iterable[tuple[Request, Request]]
) -> Iterator[tuple[str, Reply, Reply]]:
    """Yield (the first request's id, its reply, the second's reply) as soon as both are there."""
    partners: dict[str, tuple[str, str]] = {}
    asked: list[Request] = []
    for first, second in pairs:
        partners |= dict.fromkeys((first.id, second.id), (first.id, second.id))
        asked += (first, second)
    replies: dict[str, Reply] = {}
    for name, (reply, *_) in vlm.generate(asked):
        replies[name] = reply
        both = partners[name]
        if all(one in replies for one in both):
            yield both[0], replies.pop(both[0]), replies.pop(both[1])


def preference(name: str, chosen: Reply, rejected: Reply, rejected_view: str = "clean") -> Preference:
    """Return the Preference of two replies; texts are compared stripped.

    Where a server gave no answer that is its status (`refused` or `no_choice`).
    """
    texts = chosen.text.strip(), rejected.text.strip()
    status = "empty" if not all(texts) else "equal" if texts[0] == texts[1] else "ok"
    lacking = [reply.finish for reply in (chosen, rejected) if not reply.given]
    details = {
        "finish": rejected.finish,
        "tokens": len(rejected.ids) or None,
        "chosen_finish": chosen.finish,
        "chosen_tokens": len(chosen.ids) or None,
        **calls(chosen, rejected),
    }
    return Preference(name, (*lacking, status)[0], *texts, rejected_view=rejected_view, details=details)
