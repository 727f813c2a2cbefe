"""Preferences that come with the data: the source's samples bring their rejected answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from nsft_exp.interfaces import LoadedVLM
from nsft_exp.records import Preference, Sample, UserError


class Given:
    """Chosen = the sample's answer, rejected = the rejected answer that it brings. Nothing is generated."""

    needs_vlm: ClassVar[bool] = False

    def pairs(self, samples: Iterable[Sample], vlm: LoadedVLM | None) -> Iterator[Preference]:
        """Yield one Preference for every sample, in order.

        Status `ok`; `equal`: the two answers are the same text; `empty`: the rejected one is no text. Raises
        UserError for a sample without a rejected answer.
        """
        for sample in samples:
            if sample.rejected is None:
                raise UserError(
                    f"pairing=given: record {sample.id}: the source gives no rejected answer; "
                    "take source=preference, or pairing=gt to have the VLM answer"
                )
            chosen, rejected = sample.answer.strip(), sample.rejected.strip()
            status = "empty" if not rejected else "equal" if chosen == rejected else "ok"
            yield Preference(sample.id, status, chosen, rejected)
