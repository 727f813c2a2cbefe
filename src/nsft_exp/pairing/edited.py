"""Ground truth against the ground truth with errors written in, and against answers to a spoiled image.

The two kinds of rejected answers of POVID (Zhou et al. 2024) and BPO (Pi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from nsft_exp.interfaces import LoadedVLM
from nsft_exp.llm.asking import Call
from nsft_exp.llm.client import Client
from nsft_exp.pairing.editor import Editor
from nsft_exp.pairing.gt import calls, question
from nsft_exp.records import Decoding, Preference, Reply, Request, Sample, UserError
from nsft_exp.view import drawn, view_named

CHUNK = 256
"""Samples that are edited, and then asked about, together."""


class Edited:
    """Chosen = the sample's answer; rejected = that answer with errors (`editor`) and the VLM's own answer to
    the image under `view`, a pair each; either may be null.

    The second pair is in the first one's details (`others`). What the view draws at random comes from
    (`seed`, the sample's id); the other arguments say how the VLM answers, as for `pairing=gt`. Raises
    UserError where there is neither an editor nor a view.
    """

    def __init__(
        self,
        editor: Editor | None = None,
        view: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        min_edited: float = 0.5,
    ) -> None:
        if editor is None and view is None:
            raise UserError(
                "pairing=edited: nothing is rejected; give pairing.view=diffusion:500 or an editor"
            )
        if view is not None:
            view_named(view)
        if not 0 <= min_edited <= 1:
            raise UserError(f"pairing.min_edited={min_edited}: take a share from 0 to 1")
        self.editor, self.view, self.seed, self.min_edited = editor, view, seed, min_edited
        self.decoding = Decoding(max_new_tokens, temperature, top_p, seed=seed)

    @property
    def needs_vlm(self) -> bool:
        """The VLM answers where there is a view."""
        return self.view is not None

    @property
    def needs_hf(self) -> bool:
        """A view needs an engine that takes the vision tower's input."""
        return self.view not in (None, "clean")

    def pairs(self, samples: Iterable[Sample], vlm: LoadedVLM | None) -> Iterator[Preference]:
        """Yield one Preference for every sample.

        Status `ok` where at least one rejected answer differs from the chosen one; else `unedited` (there was
        nothing to get wrong and no image to look at) or `equal`. The details tell what each branch came to
        (`edit`, `view`: `ok`, `equal`, `empty`, `none`). Raises UserError when an answer is missing.
        """
        if self.view is not None and vlm is None:
            raise UserError("pairing=edited: there is no VLM to answer; choose one with vlm=...")
        left = iter(samples)
        while chunk := list(islice(left, CHUNK)):
            edits = dict(self.editor.edits(chunk)) if self.editor is not None else {}
            replies = self._replies(chunk, vlm) if self.view is not None and vlm is not None else {}
            yield from (self._pair(s, edits.get(s.id), replies.get(s.id)) for s in chunk)

    def calls(self, samples: Iterable[Sample]) -> Iterator[tuple[Client, Call]]:
        """Yield what an LLM that edits would be asked, and who asks; nothing is sent."""
        calls = getattr(self.editor, "calls", None)
        return calls(samples) if calls else iter(())

    def check(self, preferences: Sequence[Preference]) -> None:
        """Raise UserError where the editor has found nothing to get wrong in too many answers."""
        edits = [p.details["edit"] for p in preferences if "edit" in p.details]
        number = edits.count("ok")
        if number < self.min_edited * len(edits):
            raise UserError(
                f"pairing=edited: errors were written into {number} of {len(edits)} answers, fewer than "
                f"pairing.min_edited={self.min_edited:g} of them; take pairing=edited_llm (an LLM's), "
                "edited_file, or pairing.editor=null for answers to the spoiled image alone"
            )

    def _replies(self, samples: Sequence[Sample], vlm: LoadedVLM) -> dict[str, Reply]:
        """The VLM's answers about the samples that have an image, by id."""
        requests = [self._request(sample) for sample in samples if sample.image is not None]
        replies = {name: reply for name, (reply, *_) in vlm.generate(requests)}
        missing = [request.id for request in requests if request.id not in replies]
        if missing:
            raise UserError(f"pairing=edited: record {missing[0]}: the VLM gave no answer; run it again")
        return replies

    def _request(self, sample: Sample) -> Request:
        return replace(question(sample, self.decoding), view=drawn(str(self.view), self.seed, sample.id))

    def _pair(self, sample: Sample, edited: str | None, reply: Reply | None) -> Preference:
        chosen = sample.answer.strip()
        rejected: dict[str, str | None] = {}
        if self.editor is not None:
            rejected["edit"] = None if edited is None else edited.strip()
        if self.view is not None:
            rejected["view"] = reply.text.strip() if reply is not None and reply.given else None
        statuses = {branch: _status(chosen, text) for branch, text in rejected.items()}
        views = {"edit": "clean", "view": drawn(str(self.view), self.seed, sample.id)}
        kept = [(rejected[b] or "", views[b]) for b, status in statuses.items() if status == "ok"]
        details: dict[str, object] = {**statuses, **calls(*([reply] if reply else ()))}
        if not kept:
            unedited = set(statuses.values()) == {"none"}
            return Preference(sample.id, "unedited" if unedited else "equal", chosen, chosen, details=details)
        if kept[1:]:
            details["others"] = [{"rejected": text, "rejected_view": view} for text, view in kept[1:]]
        return Preference(sample.id, "ok", chosen, kept[0][0], rejected_view=kept[0][1], details=details)


def _status(chosen: str, rejected: str | None) -> str:
    return (
        "none" if rejected is None else "empty" if not rejected else "equal" if rejected == chosen else "ok"
    )
