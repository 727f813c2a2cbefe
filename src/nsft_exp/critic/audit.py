"""How good a critic is: its errors against an annotation of the pictures, which it never saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nsft_exp.critic.contradiction import CATEGORIES, contradictions
from nsft_exp.critic.lexicon import Lexicon
from nsft_exp.critic.reading import Reader
from nsft_exp.critic.truth import truth_of_scene
from nsft_exp.critic.weakness import right_claims
from nsft_exp.records import Correction, Preference, Sample

Span = tuple[int, int]


@dataclass(frozen=True)
class Audit:
    """Sums over audited answers, of one category or of all."""

    found: int = 0
    """Errors that the critic names."""
    true: int = 0
    """Those of them that the annotation says are errors."""
    existing: int = 0
    """Errors that the rejected answers make by the annotation."""
    recalled: int = 0
    """Those of them that the critic names."""
    right: int = 0
    """Claims of the rejected answers that touch no error by the annotation."""

    @property
    def precision(self) -> float | None:
        """Share of the named errors that are errors; None when none is named."""
        return self.true / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """Share of the errors that are named; None when there is none."""
        return self.recalled / self.existing if self.existing else None

    @property
    def invented(self) -> float | None:
        """Named errors that are none, for every right claim; None when there is no right claim."""
        return (self.found - self.true) / self.right if self.right else None

    def __add__(self, other: Audit) -> Audit:
        return Audit(
            self.found + other.found,
            self.true + other.true,
            self.existing + other.existing,
            self.recalled + other.recalled,
            self.right + other.right,
        )


def scenes_of(samples: Iterable[Sample]) -> dict[str, dict[str, Any]]:
    """Return the annotations that the samples' records carry (in `meta`), by the image's name."""
    return {sample.cluster: sample.meta["annotation"] for sample in samples if "annotation" in sample.meta}


def audit(
    rows: Iterable[tuple[Sample, Preference, Correction]],
    scenes: Mapping[str, Mapping[str, Any]],
    lexicon: Lexicon,
) -> dict[str, Audit]:
    """Return the sums by category and, whatever the category, under `all`.

    Counted are the pairs that differ and whose picture is annotated; `scenes` maps an image's name (the
    sample's cluster) to `{scene, objects: [{category, color, size, place}], sign}`. The errors that exist are
    the claims of the rejected answer that the annotation contradicts; a named error is one of them when it
    shares a character with it (and, in a category's row, its category). Words that the reader does not
    understand make no claim, and so are neither right nor wrong here.
    """
    reader = Reader(lexicon)
    sums = {name: Audit() for name in (*dict.fromkeys(CATEGORIES.values()), "all")}
    for sample, preference, correction in rows:
        if preference.status == "ok" and sample.cluster in scenes:
            said = reader.read(sample.question, preference.rejected)
            wrongs = contradictions(truth_of_scene(scenes[sample.cluster], lexicon), said.claims)
            existing = [(w.category, (w.claim.start, w.claim.end)) for w in wrongs]
            named = [(e.category, (e.start, e.end)) for e in correction.errors]
            right = [(CATEGORIES[c.kind], (c.start, c.end)) for c in right_claims(said, wrongs)]
            for name in sums:
                sums[name] += _compare(_of(named, name), _of(existing, name), len(_of(right, name)))
    return sums


def _of(spans: Iterable[tuple[str, Span]], category: str) -> list[Span]:
    return [span for name, span in spans if category in ("all", name)]


def _compare(named: list[Span], existing: list[Span], right: int) -> Audit:
    true = sum(any(_overlap(a, b) for b in existing) for a in named)
    recalled = sum(any(_overlap(a, b) for b in named) for a in existing)
    return Audit(len(named), true, len(existing), recalled, right)


def _overlap(first: Span, second: Span) -> bool:
    return first[0] < second[1] and second[0] < first[1]
