"""The records that pass between stages: frozen, plain, and the same in memory and on disk.

Everything else in the package meets here. A source makes `Sample`s, a pairing makes `Preference`s,
a critic makes `Correction`s, a method turns those into `Example`s, a VLM answers `Request`s with
`Reply`s, and a benchmark turns replies into `ItemScore`s. `to_json` and `from_json` convert any of
them to and from plain JSON values.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["prompt", "chosen", "rejected", "correction", "mismatch"]
ROLES: tuple[str, ...] = ("prompt", "chosen", "rejected", "correction", "mismatch")
"""What a turn's tokens are for; a role's place in this tuple is its number in role tensors."""


class UserError(Exception):
    """Bad input or a bad config: one line that names the file, the record and the mend.

    The command line prints the message without a traceback and exits with code 2.
    """


@dataclass(frozen=True)
class Exchange:
    """One question of the user and the assistant's answer to it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One question about one image, with its ground-truth answer and the exchanges before it."""

    id: str
    image: str | None
    """Path of the image file, or None for a text-only sample."""
    question: str
    answer: str
    history: tuple[Exchange, ...] = ()
    """Earlier exchanges of the conversation, from the ground truth; the image is in the first question."""
    cluster: str = ""
    """What is resampled together in statistics: the image's name."""
    meta: dict[str, Any] = field(default_factory=dict)
    rejected: str | None = None
    """The rejected answer that a source of preferences brings (`pairing=given` takes it)."""


@dataclass(frozen=True)
class Preference:
    """Who is chosen (y_c) and who is rejected (y_r) for one sample."""

    id: str
    status: str
    """`ok`, `equal` (chosen and rejected are the same text), or a pairing's own reason to have no pair."""
    chosen: str
    rejected: str
    chosen_view: str = "clean"
    rejected_view: str = "clean"
    """The named image transform under which each answer was given (`clean`, `diffusion:500` ...)."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundError:
    """One error that a critic found in a rejected answer."""

    category: str
    """A category of the codebook."""
    start: int
    end: int
    """Characters [start, end) of the rejected text that are wrong."""
    wrong: str
    right: str
    """What the answer says, and what it should say (empty: it should not be said at all)."""


@dataclass(frozen=True)
class Correction:
    """A critic's reply G(y_r; y_c, Q): the errors, and a dialogue that teaches not to make them."""

    id: str
    status: str
    """`ok`, `no_error`, `unparseable` or `refused`; only `ok` carries a dialogue."""
    errors: tuple[FoundError, ...] = ()
    dialogue: tuple[Exchange, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """What a method sees of one sample: the sample and what the earlier stages made of it."""

    sample: Sample
    preference: Preference | None = None
    correction: Correction | None = None


@dataclass(frozen=True)
class Turn:
    """One turn's text and the role of its tokens.

    Turns alternate user, assistant, user, ... A user turn has role `prompt`; an assistant turn has role
    `prompt` too when it is context only, else the role under which a loss finds its tokens.
    """

    role: str
    text: str
    spans: tuple[tuple[int, int, float], ...] = ()
    """(start, end, weight): characters of an answer whose tokens weigh other than 1 in the loss."""


@dataclass(frozen=True)
class Conversation:
    """One token sequence: an image under a view, and turns."""

    image: str | None
    turns: tuple[Turn, ...]
    view: str = "clean"
    """A named image transform (`clean`, `diffusion:500` ...)."""


@dataclass(frozen=True)
class Example:
    """The unit of the global batch: the conversations of one sample, never split over micro-batches."""

    id: str
    conversations: tuple[Conversation, ...]


@dataclass(frozen=True)
class Decoding:
    """How to answer: temperature 0 is greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    seed: int = 0
    """Seed of sampled answers; the noise of a token comes from (seed, request id, sample index, step)."""
    diversity: float = 0.0
    """Of n greedy answers: what a token's logit loses for each earlier one that takes it at the same step."""
    one_sentence: bool = False
    """End after a full stop."""


@dataclass(frozen=True)
class Request:
    """One question to a VLM. The last turn is the user's; the answer continues `answer_prefix`."""

    id: str
    image: str | None
    turns: tuple[Turn, ...]
    view: str = "clean"
    answer_prefix: str = ""
    n: int = 1
    """How many answers."""
    decoding: Decoding = Decoding()
    candidates: tuple[str, ...] = ()
    """Whole answers whose log-probability is wanted besides the generated one (`Yes`, `No`)."""
    lineage: str = ""
    """Requests of one lineage go on where earlier ones, or their answers, ended: a model in memory keeps what
    it has run of them, until a call without any."""


NO_ANSWER = ("refused", "no_choice")
"""How a server's reply without an answer ended: refused by the model or by a filter, or without a choice."""


@dataclass(frozen=True)
class Reply:
    """One answer: its stripped text, generated ids with log-probabilities, and why it ended."""

    text: str
    ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    finish: str = "stop"
    """`stop` (end of answer), `length` (token limit), `sentence` (a full stop, where one was asked for), or
    one of NO_ANSWER."""
    candidate_logps: tuple[float, ...] | None = None
    """Summed log-probability (nats, end of answer included) of each of the request's candidates."""
    request: str = ""
    """Where a server answered: its request's key in the ledger, which has the raw reply and its cost."""

    @property
    def given(self) -> bool:
        """Whether this is an answer. One that is not is counted, and never scored or trained on."""
        return self.finish not in NO_ANSWER


@dataclass(frozen=True)
class ItemScore:
    """The score of one benchmark item: counts whose sums make the metrics, with the item's cluster."""

    id: str
    cluster: str
    """What is resampled together: the image's name."""
    counts: dict[str, float]
    parsed: str = ""
    """How the official rule read the answer."""
    ranks: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Group -> (label 0/1, score): items whose area under the ROC curve is a metric `<group>_auc`."""
    marks: tuple[tuple[int, int, str], ...] = ()
    """(start, end, `right`|`wrong`): parts of the answer that the score counts, for people to see."""
    truth: str = ""
    """The right answer in words, for people to see."""
    unparseable: bool = False
    """True where no rule could read the answer in its asked form; counted apart, changes no score."""


@dataclass(frozen=True)
class Metric:
    """How a benchmark's metric is shown and compared."""

    name: str
    title: str
    better: Literal["up", "down", "none"]
    scale: str
    """`percent` (0-100), `points`, `tokens`, `words`, `ratio` ..."""
    group: Literal["yes_no", "generation", "short_answer", "judged", "other"]
    """Yes/no tests and free generation are shown in separate columns."""
    headline: bool = False


def to_json(record: Any) -> Any:
    """Return a record (or a tuple, list or dict of them) as plain JSON values."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, (tuple, list)):
        return [to_json(x) for x in record]
    if isinstance(record, dict):
        return {k: to_json(v) for k, v in record.items()}
    return record


def from_json(kind: Any, value: Any) -> Any:
    """Rebuild a record of type `kind` from `to_json`'s output; unknown keys raise TypeError."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {sorted(unknown)}")
        return kind(**{k: from_json(hints[k], v) for k, v in value.items()})
    if origin in (typing.Union, types.UnionType):
        return None if value is None else from_json(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return tuple(from_json(k, v) for k, v in zip(kinds, value, strict=True))
    if origin is dict:
        return {k: from_json(args[1], v) for k, v in value.items()}
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Resolved field types, remembered: resolving them costs more than all the rest of a conversion."""
    return typing.get_type_hints(kind)
