"""Best against worst path of a tree of sentences, by image-text score and likelihood (CSR, 2024)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar

from nsft_exp.interfaces import LoadedVLM
from nsft_exp.pairing.gt import question
from nsft_exp.pairing.scorer import Scorer
from nsft_exp.records import Decoding, Preference, Reply, Sample, UserError

BRANCHING = 5
"""With this many new sentences on a level only some are kept (CSR's public code)."""


@dataclass(eq=False)
class Node:
    """A sentence and the path to it; the root's are empty. `likelihood` adds up the sentences' mean log p."""

    path: str = ""
    sentence: str = ""
    logp: float = 0.0
    likelihood: float = 0.0
    parent: Node | None = None
    value: float = 0.0
    children: list[Node] = field(default_factory=list)

    def line(self) -> list[Node]:
        """The nodes from the root to this one."""
        return [*(self.parent.line() if self.parent else ()), self]


class SentenceTree:
    """Chosen and rejected are the best and the worst of the VLM's answers in a tree of sentences.

    Every open path goes on with `beams` greedy sentences that take `diversity` from the logits of one
    another's tokens (group beam search, a beam a group), each of at most `sentence_tokens`. On a level with
    five or more new ones the likeliest and the two unlikeliest paths stay. A path ends with the answer, or
    beyond `max_characters`. A sentence is worth `weight` times its rank by `scorer` plus the rest times its
    rank by mean log-probability, both among its siblings and divided by their number (1 is the best); a path
    the sum over its nodes by their number, the root among them. Least is chosen, most is rejected. The ground
    truth is not read.
    """

    needs_vlm: ClassVar[bool] = True
    needs_hf: ClassVar[bool] = True
    """Answers that look at one another's tokens are made on the model's own step."""
    chunk: ClassVar[int] = 16
    """Samples whose trees grow together: few enough for the model to keep what it has run of them."""

    def __init__(
        self,
        scorer: Scorer,
        beams: int = 5,
        diversity: float = 3.0,
        sentence_tokens: int = 70,
        max_characters: int = 1024,
        weight: float = 0.9,
    ) -> None:
        if beams < 2 or diversity <= 0:
            raise UserError(f"pairing.beams={beams}, diversity={diversity}: take 2 beams and 0.1 or more")
        if not 0 <= weight <= 1:
            raise UserError(f"pairing.weight={weight}: take a share from 0 to 1")
        self.scorer, self.beams, self.weight = scorer, beams, weight
        self.max_characters = max_characters
        self.decoding = Decoding(sentence_tokens, diversity=diversity, one_sentence=True)

    def pairs(self, samples: Iterable[Sample], vlm: LoadedVLM | None) -> Iterator[Preference]:
        """Yield one Preference for every sample, chunk by chunk.

        Status `ok`; `one_path`: no two paths differ; `no_image`: the sample has none. The details hold the
        number of `paths`, and the `values` of the chosen and the rejected one.
        """
        if vlm is None:
            raise UserError("pairing=sentence_tree: there is no VLM to answer; choose one with vlm=...")
        left = iter(samples)
        while chunk := list(islice(left, self.chunk)):
            yield from (Preference(s.id, "no_image", "", "") for s in chunk if s.image is None)
            seen = [sample for sample in chunk if sample.image is not None]
            roots, leaves = self._grow(seen, vlm)
            self._value(seen, roots, vlm)
            yield from (decided(sample.id, leaves[sample.id]) for sample in seen)

    # --- the tree ----------------------------------------------------------------------------------

    def _grow(
        self, samples: Sequence[Sample], vlm: LoadedVLM
    ) -> tuple[dict[str, Node], dict[str, list[Node]]]:
        """Grow every sample's tree, all by a level at a time; return the roots and the ended paths."""
        roots = {sample.id: Node() for sample in samples}
        leaves: dict[str, list[Node]] = {sample.id: [] for sample in samples}
        opened = {key: [root] for key, root in roots.items()}
        while opened:
            ended = self._extend(samples, opened, vlm)
            following: dict[str, list[Node]] = {}
            for key, nodes in opened.items():
                kept = pruned([child for node in nodes for child in node.children])
                closed = [n for n in kept if id(n) in ended or len(n.path) > self.max_characters]
                closed += [n for n in nodes if n.path and (id(n) in ended or not n.children)]
                leaves[key] += [n for n in closed if n not in leaves[key]]
                still = [n for n in kept if n not in closed]
                following |= {key: still} if still else {}
            opened = following
        return roots, leaves

    def _extend(self, samples: Sequence[Sample], opened: dict[str, list[Node]], vlm: LoadedVLM) -> set[int]:
        """Give every open node its children; return the object ids of the nodes whose answer has ended."""
        asked = {}
        for sample in samples:
            for number, node in enumerate(opened.get(sample.id, ())):
                name = f"{sample.id}|{number}"
                asked[name] = (
                    node,
                    replace(
                        question(sample, self.decoding),
                        id=name,
                        n=self.beams,
                        answer_prefix=node.path,
                        lineage=sample.id,
                    ),
                )
        ended: set[int] = set()
        for name, replies in vlm.generate([request for _, request in asked.values()]):
            for reply in replies:
                ended.update(map(id, self._attach(asked[name][0], reply)))
        return ended

    def _attach(self, node: Node, reply: Reply) -> list[Node]:
        """Add the reply's sentence to the node's children; return the nodes that the reply ends."""
        if not reply.text.startswith(node.path):
            return []
        sentence = reply.text[len(node.path) :].strip()
        if not sentence:
            return [node] if reply.finish == "stop" else []
        if is_junk(sentence) or any(child.sentence == sentence for child in node.children):
            return []
        logp = sum(reply.logps) / len(reply.logps)
        child = Node(reply.text, sentence, logp, node.likelihood + logp, node)
        node.children.append(child)
        return [child] if reply.finish == "stop" else []

    # --- values ------------------------------------------------------------------------------------

    def _value(self, samples: Sequence[Sample], roots: dict[str, Node], vlm: LoadedVLM) -> None:
        families = [(sample, node) for sample in samples for node in below(roots[sample.id]) if node.children]
        texts = [(sample, child.sentence) for sample, node in families for child in node.children]
        scores = iter(self.scorer.scores(texts, vlm))
        for _, node in families:
            likelihoods = [child.logp for child in node.children]
            both = zip(ranks(list(islice(scores, len(likelihoods)))), ranks(likelihoods), strict=True)
            for child, (seen, likely) in zip(node.children, both, strict=True):
                child.value = (self.weight * seen + (1 - self.weight) * likely) / len(likelihoods)


def below(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes under it."""
    yield node
    for child in node.children:
        yield from below(child)


def pruned(nodes: list[Node]) -> list[Node]:
    """Keep the likeliest path and the two unlikeliest of five or more; all of fewer."""
    if len(nodes) < BRANCHING:
        return nodes
    ordered = sorted(nodes, key=lambda node: -node.likelihood)
    return [ordered[0], *ordered[-2:]]


def ranks(scores: Sequence[float]) -> list[int]:
    """Return each score's rank: 1 for the highest, equal scores alike."""
    return [1 + sum(other > score for other in scores) for score in scores]


def path_value(leaf: Node) -> float:
    """Return the mean value of a path's nodes, the root (0) among them."""
    line = leaf.line()
    return sum(node.value for node in line) / len(line)


def decided(name: str, leaves: Sequence[Node]) -> Preference:
    """Return the Preference of the best path over the worst."""
    if len({leaf.path for leaf in leaves}) < 2:
        path = leaves[0].path if leaves else ""
        return Preference(name, "one_path", path, path, details={"paths": len(leaves)})
    ordered = sorted(leaves, key=path_value)
    best, worst = ordered[0], ordered[-1]
    values = [round(path_value(leaf), 6) for leaf in (best, worst)]
    status = "ok" if values[0] != values[1] and best.path != worst.path else "equal"
    return Preference(name, status, best.path, worst.path, details={"paths": len(leaves), "values": values})


REPEATED = re.compile(r"(\S+)(?:\s+\1\b){5}")


def is_junk(sentence: str) -> bool:
    """True for fewer than 4 characters, letters other than Latin ones, emoji, six times a word, or 6 line
    breaks.

    CSR's public code filters the same.
    """
    foreign = any(ord(c) > 0x024F and (c.isalpha() or ord(c) >= 0x1F000) for c in sentence)
    return len(sentence) < 4 or foreign or sentence.count("\n") > 5 or bool(REPEATED.search(sentence))
