"""CHAIR: which objects of a description are not in the image? (Rohrbach et al. 2018, the original variant)

Files under `root`, COCO's own (2014), plus a synonym table that the user points to:

    annotations/instances_{train2014,val2014}.json   {images [{id, file_name}], annotations [{image_id,
                                                     category_id}], categories [{id, name}]}
    annotations/captions_{train2014,val2014}.json    {images ..., annotations [{image_id, caption}]}
    synonyms                                         a class a line: "dog, puppy, ..."

An image's true objects are its instance classes and the objects of its reference captions. Images are
`image_root/<file_name>`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsft_exp.benchmark.answers import AnswerLine, ScoredAnswers, absent, repeated
from nsft_exp.benchmark.caption_words import object_words, read_synonyms
from nsft_exp.benchmark.coco import Coco
from nsft_exp.benchmark.counting import get, percent, ratio
from nsft_exp.benchmark.reading import MakesFiles, ask, image_path, need, prepare, read_json, read_text
from nsft_exp.records import Decoding, ItemScore, Metric, Reply, Request, UserError

VARIANT = "CHAIR, original variant (word_tokenize, pattern singularize)"


class Chair:
    """Free description of images, scored by the objects it names.

    CHAIR fixes neither image set nor prompt nor length, so all three are arguments and in the protocol.
    """

    def __init__(
        self,
        root: str,
        synonyms: str,
        image_root: str | None = None,
        images: str | Sequence[int] | None = None,
        splits: Sequence[str] = ("train2014", "val2014"),
        prompt: str = "Please describe this image in detail.",
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_new_tokens: int = 512,
        files_from: MakesFiles | None = None,
        name: str = "chair",
    ) -> None:
        """`images`: ids, or a file of ids or file names (JSON list, or one a line); None: all of `splits`."""
        self.name, self.prompt = name, prompt
        self.splits = (splits,) if isinstance(splits, str) else tuple(splits)
        self.root, self.image_root, self.synonyms = Path(root), image_root, Path(synonyms)
        self.images = images if images is None or isinstance(images, str) else tuple(images)
        self.files_from = files_from
        self.decoding = Decoding(max_new_tokens, temperature, top_p, seed=seed)
        self._coco: Coco | None = None
        self._nodes: dict[str, str] | None = None
        self._asked: list[int] | None = None

    @property
    def protocol(self) -> str:
        """The variant, the prompt, the decoding and the image set (its size and a digest of its ids)."""
        sampling = f"temperature {self.decoding.temperature:g}" if self.decoding.temperature else "greedy"
        return (
            f"{VARIANT}; prompt {self.prompt!r}, {sampling}, {self.decoding.max_new_tokens} tokens; "
            f"{_digest(self.asked())}"
        )

    def files(self) -> list[Path]:
        """The annotation files, the synonym table and the image list."""
        prepare(self.files_from)
        kinds = ("instances", "captions")
        found = [self._folder() / f"{k}_{s}.json" for k in kinds for s in self.splits]
        listed = [Path(self.images)] if isinstance(self.images, str) else []
        return [*found, self.synonyms, *listed]

    def requests(self) -> list[Request]:
        """One description an image; ids are COCO's image ids."""
        names = self._annotations().names
        questions = (
            (str(i), image_path(self.image_root, names[i], f"{self.name}: image {i}"), self.prompt)
            for i in self.asked()
        )
        return ask(questions, self.decoding)

    def score(self, request: Request, reply: Reply) -> ItemScore:
        """The object words of one description, each right or wrong."""
        return self.score_caption(int(request.id), reply.text)

    def score_caption(self, image_id: Any, caption: str) -> ItemScore:
        """Counts of one caption; an image without annotations has no objects, so that all are wrong."""
        coco = self._annotations()
        true = coco.objects(image_id)
        words = object_words(caption, coco.nodes)
        wrong = [w for w in words if w.node not in true]
        counts: dict[str, float] = {
            "captions": 1,
            "hallucinated_captions": int(bool(wrong)),
            "object_words": len(words),
            "hallucinated_words": len(wrong),
            "true_objects": len(true),
            "named_objects": len(true & {w.node for w in words}),
            "words": len(caption.split()),
        }
        marks = tuple((w.start, w.end, "right" if w.node in true else "wrong") for w in words)
        return ItemScore(
            str(image_id),
            cluster=coco.names.get(image_id, str(image_id)),
            counts=counts,
            parsed=", ".join(w.node for w in words),
            marks=marks,
            truth=", ".join(sorted(true)),
            unparseable=not caption.strip(),
        )

    def objects_in(self, text: str) -> list[str]:
        """Return the words of any text that name an object of the synonym table, in order, as written."""
        if self._nodes is None:
            prepare(self.files_from)
            self._nodes = read_synonyms(self.synonyms)
        return [text[word.start : word.end] for word in object_words(text, self._nodes)]

    def metrics(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """CHAIRs, CHAIRi, their mean and recall in percent; length in words a caption."""
        captions = get(counts, "captions")
        chair_s = percent(get(counts, "hallucinated_captions"), captions)
        chair_i = percent(get(counts, "hallucinated_words"), get(counts, "object_words"))
        return {
            "chair_s": chair_s,
            "chair_i": chair_i,
            "chair": (chair_s + chair_i) / 2,
            "recall": percent(get(counts, "named_objects"), get(counts, "true_objects")),
            "length": ratio(get(counts, "words"), captions),
            "objects": ratio(get(counts, "object_words"), captions),
        }

    def describe(self) -> list[Metric]:
        """Both CHAIR scores are headlines; recall and length tell at what price."""
        return [
            Metric("chair_s", "CHAIRs", "down", "percent", "generation", headline=True),
            Metric("chair_i", "CHAIRi", "down", "percent", "generation", headline=True),
            Metric("chair", "CHAIR mean", "down", "percent", "generation"),
            Metric("recall", "object recall", "up", "percent", "generation"),
            Metric("length", "caption length", "none", "words", "generation"),
            Metric("objects", "object words a caption", "none", "words", "generation"),
        ]

    def score_answers(self, lines: Sequence[AnswerLine]) -> ScoredAnswers:
        """Score captions by their `image_id` (a number), else COCO's file name under `image`, else their id.

        As in the official program every caption counts, a repeated one too, and every object word of an
        image without annotations is wrong. Missing ids are told against `images`, if that is set.
        """
        known = self._annotations().names
        given = self._images_of(lines)
        asked = self.asked() if self.images is not None else [i for i in dict.fromkeys(given) if i in known]
        expected = set(asked)
        return ScoredAnswers(
            [self.score_caption(i, line.text) for i, line in zip(given, lines, strict=True)],
            expected=len(asked),
            answered=len(expected & set(given)),
            missing=absent(asked, given),
            duplicate=repeated(given),
            unknown=absent(given, expected),
            said=[line.text for line in lines],
            protocol=f"{VARIANT}; captions of a file; {_digest(asked)}",
        )

    def _images_of(self, lines: Sequence[AnswerLine]) -> list[Any]:
        """Each line's image: POPE's caption files count lines in `question_id` and have an `image_id` too."""
        ids = {name: i for i, name in self._annotations().names.items()}
        images = []
        for line in lines:
            if "image_id" in line.row:
                images.append(need(line.row, "image_id", (int, str), line.where))
            else:
                name = line.row.get("image")
                images.append(ids.get(name, line.id) if isinstance(name, str) else line.id)
        return images

    def asked(self) -> list[int]:
        """The image ids in question, in order. UserError for one that the annotations lack."""
        if self._asked is None:
            coco = self._annotations()
            self._asked = list(coco.names) if self.images is None else self._listed(coco)
        return self._asked

    def _listed(self, coco: Coco) -> list[int]:
        where = str(self.images) if isinstance(self.images, str) else "benchmark.images"
        entries = _read_list(Path(self.images)) if isinstance(self.images, str) else list(self.images or ())
        ids = {name: i for i, name in coco.names.items()}
        asked = []
        for entry in entries:
            i = entry if isinstance(entry, int) else ids.get(entry, int(entry) if entry.isdigit() else -1)
            if i not in coco.names:
                raise UserError(f"{where}: image {entry} is not in the COCO annotations under {self.root}")
            asked.append(i)
        if repeated(asked) or not asked:
            what = f"image {repeated(asked)[0]} is listed twice" if asked else "no image is listed"
            raise UserError(f"{where}: {what}; mend the list")
        return asked

    def _annotations(self) -> Coco:
        if self._coco is None:
            prepare(self.files_from)
            nodes = read_synonyms(self.synonyms)
            self._coco = Coco(self._folder(), self.splits, nodes, self.synonyms)
        return self._coco

    def _folder(self) -> Path:
        """COCO's folder `annotations` under `root`, or `root` itself where it holds the files."""
        below = self.root / "annotations"
        here = not below.is_dir() and any(self.root.glob("instances_*.json"))
        return self.root if here else below


def _digest(ids: Sequence[int]) -> str:
    """Names an image set by its size and the first digits of the SHA-256 of its sorted ids."""
    digest = hashlib.sha256(" ".join(map(str, sorted(ids))).encode()).hexdigest()[:8]
    return f"{len(ids)} images ({digest})"


def _read_list(path: Path) -> list[int | str]:
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = read_json(path)
    else:
        rows = [line.strip() for line in text.split("\n") if line.strip()]
    for k, row in enumerate(rows, 1):
        if not isinstance(row, (int, str)):
            raise UserError(
                f"{path}: entry {k}: {row!r} is neither an image id nor a file name; mend the list"
            )
    return rows
