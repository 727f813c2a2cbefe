"""The protocols that every axis of an experiment implements, on one screen.

An item of an axis (a source, a method, a benchmark ...) is a class that fits its protocol here and a
YAML file whose `_target_` names it. Constructors take plain keyword arguments and are cheap: files are
opened, models loaded and torch imported only when the object is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from nsft_exp.records import (
    Correction,
    Example,
    Item,
    ItemScore,
    Metric,
    Preference,
    Reply,
    Request,
    Sample,
)

if TYPE_CHECKING:
    from pathlib import Path

    from nsft_exp.losses import TokenScores


class Source(Protocol):
    """Where samples come from."""

    def samples(self) -> Sequence[Sample]:
        """All chosen samples in a stable order: a nested random prefix of `size`, by the source's seed.

        Raises UserError naming file, record id and mend for a broken file.
        """

    def files(self) -> list[Path]:
        """The annotation files whose content decides the samples (for the stage's key)."""


class LoadedVLM(Protocol):
    """A vision-language model in memory."""

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        """Yield (request id, its n replies) in any order. Refuses with UserError what it cannot do."""


class VLM(Protocol):
    """A vision-language model: cheap to construct, expensive to load."""

    def load(self, adapters: Sequence[Path] = ()) -> LoadedVLM:
        """Load weights, and on them the trained parts (train-stage folders) in order."""

    def answerer(self, adapters: Sequence[Path] = ()) -> LoadedVLM:
        """What answers with the model and these trained parts: the loaded model itself, or another engine.

        Where it has `close()`, that is called at the end of the stage. A VLM that a server answers for also
        has `usage(keys) -> dict`: what the calls behind its replies (`Reply.request`) have cost, and
        `check_served(adapters)`, which raises UserError for trained parts that the server cannot have.
        """

    def files(self) -> list[Path]:
        """The model's files (for the stage's key); empty when it is made from a seed."""


class Pairing(Protocol):
    """Who is chosen and who is rejected. `vlm` answers; None where `needs_vlm` is False."""

    needs_vlm: ClassVar[bool]

    def pairs(self, samples: Iterable[Sample], vlm: LoadedVLM | None) -> Iterator[Preference]:
        """Yield one Preference for every sample, in any order.

        A pairing that can tell whether its preferences are fit to be trained on also has
        `check(preferences) -> None`, which raises UserError where they are not: it is called at the end of
        every respond stage, a finished one included. One that asks an LLM has `calls(samples)`, as a critic.
        One whose later requests depend on earlier replies has `chunk`, how many samples it works on at once:
        several devices are given a chunk each, from threads.
        """


class Critic(Protocol):
    """G(y_r; y_c, Q): finds the errors of rejected answers and writes corrective dialogues."""

    def corrections(self, pairs: Iterable[tuple[Sample, Preference]]) -> Iterator[Correction]:
        """Yield one Correction for every pair, in any order (a critic may be concurrent).

        Reads the question, the two answers and the codebook; never an annotation of the image. A critic
        whose corrections depend on other pairs too also has `survey(pairs) -> None`, which is called before
        with all pairs of the cell. One that asks a server also has `calls(pairs)`, which yields (client,
        call) for all that it would ask, and sends nothing: what a run will cost is told from it.
        """


@dataclass(frozen=True)
class Needs:
    """What a method's loss reads besides the policy's token log-probabilities."""

    reference: Literal["nothing", "logp", "distribution"] = "nothing"
    direction: Literal["forward", "reverse"] = "forward"
    """Of the divergence, where it reads the distribution: KL(reference || policy), or the reverse."""
    values: bool = False
    """A scalar head's values in place of log-probabilities: a reward model."""
    rollouts: bool = False
    """The policy's own answers, scored by a reward model: PPO, which is trained by `nsft_exp.ppo`."""


class Method(Protocol):
    """Which examples are trained on, and their loss. Nothing else.

    A method that can tell whether its training came to something also has `check(rows of metrics) -> None`,
    which raises UserError where it did not: it is called at the end of every train stage, a finished one
    included. One that not every way of training suits has `fits(recipe, tuning, trainer) -> None`, which
    raises UserError.
    """

    consumes: ClassVar[Literal["nothing", "sample", "preference", "correction"]]

    @property
    def needs(self) -> Needs:
        """What the loss reads besides the policy's log-probabilities."""

    def examples(self, items: Sequence[Item], rng: Random) -> list[Example]:
        """The whole ordered list of training examples: pure, no torch."""

    def loss(self, policy: TokenScores, reference: TokenScores | None) -> dict[str, tuple[Any, Any]]:
        """Each term as (sum, weight) over a micro-batch; the loop divides by the global batch's weight.

        A weight depends on roles, weights and example numbers only, never on log-probabilities, so that
        the loop can count it before the first forward pass.
        """


@dataclass(frozen=True)
class Address:
    """Where a model is served by the OpenAI protocol, under which name, and the key to it."""

    base_url: str
    model: str
    key: str = field(default="", repr=False)


class Evaluator(Protocol):
    """A benchmark that another program evaluates: it asks the model's server itself, and scores."""

    name: str

    def command(self, address: Address, out: Path, limit: int | None) -> tuple[list[str], dict[str, str]]:
        """The words that run the program, and what they add to the environment."""

    def outcome(self, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What the program has written, as (an evaluate stage's summary, a record for each item)."""


class Watched(Protocol):
    """Questions of a benchmark that a model answers now and then while it is trained."""

    @property
    def name(self) -> str:
        """The benchmark's name in the cell."""

    @property
    def requests(self) -> Sequence[Request]:
        """The questions."""

    def metrics(self, replies: Mapping[str, Reply]) -> dict[str, float]:
        """The official rule on these answers: the metrics that have a value."""


class Benchmark(Protocol):
    """One test: questions, the official scoring rule, and metrics as functions of summed counts."""

    name: str

    @property
    def protocol(self) -> str:
        """Names the scoring rule and data version; stored with every score."""

    def requests(self) -> list[Request]:
        """All questions, in a stable order."""

    def score(self, request: Request, reply: Reply) -> ItemScore | None:
        """The official rule on one answer; None: it cannot be scored (counted, never 0).

        Where a metric needs several answers together (pairs of questions, rotated options), a benchmark
        also has `combine(scores) -> scores`: given all scores of a set, it adds the counts of the groups
        that are whole. It is called once, before anything is summed. One that a server scores also has
        `submission(answers by id) -> {file name: text or bytes}`, empty while an answer is missing.
        """

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from summed counts. Values may be numbers or arrays (bootstrap replicates):
        the arithmetic is elementwise; NaN where a metric is undefined."""

    def describe(self) -> list[Metric]:
        """How each metric is shown and compared, headline first.

        A benchmark whose headline is a mean over items and that knows question types also has
        `classes() -> {item id: question type and answer}`: reports score the base's worst and best classes.
        One with a table of objects has `objects_in(text) -> words`: reports count them in corrections.
        """

    def files(self) -> list[Path]:
        """The files whose content decides the score (for the stage's key)."""
