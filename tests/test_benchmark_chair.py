from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark_files import answers, fixture, fixture_lines, score_all, touch, write_json
from nsft_exp.benchmark.answers import read_answers, sum_counts, summarise
from nsft_exp.benchmark.caption_words import object_words, read_synonyms
from nsft_exp.benchmark.chair import Chair
from nsft_exp.benchmark.singular import singularize
from nsft_exp.benchmark.word_tokens import tokenize
from nsft_exp.records import UserError

TABLE = """person, man, people, child, baby
dog, puppy
motorcycle,  motor bike, motor cycle
train
wine glass
bus, minibus
tie, bow, bow tie
toilet
chair, seat
orange
hot dog
cup
"""


def write_coco(root: Path, split: str, images: dict[int, tuple[list[str], list[str]]]) -> None:
    """Write COCO annotations: image id -> (instance class names, reference captions)."""
    names = [line.split(", ")[0] for line in TABLE.splitlines()]
    categories = [{"id": 2 * k + 1, "name": name} for k, name in enumerate(names)]
    ids = {c["name"]: c["id"] for c in categories}
    rows = [{"id": i, "file_name": f"COCO_{split}_{i:012d}.jpg"} for i in images]
    things = [{"image_id": i, "category_id": ids[n]} for i, (found, _) in images.items() for n in found]
    texts = [{"image_id": i, "caption": c} for i, (_, captions) in images.items() for c in captions]
    folder = root / "annotations"
    write_json(
        folder / f"instances_{split}.json", {"images": rows, "annotations": things, "categories": categories}
    )
    write_json(folder / f"captions_{split}.json", {"images": rows, "annotations": texts})
    touch(root / "images", [r["file_name"] for r in rows])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_coco(
        tmp_path, "val2014", {7: (["dog"], ["A man with a dog."]), 3: (["cup", "cup"], ["A small room."])}
    )
    write_coco(tmp_path, "train2014", {11: ([], ["Some people on a bus.", "Two buses."])})
    (tmp_path / "synonyms.txt").write_text(TABLE)
    return tmp_path


def chair(root: Path, **options: Any) -> Chair:
    return Chair(str(root), str(root / "synonyms.txt"), str(root / "images"), **options)


def nodes(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "table.txt"
    path.write_text(TABLE)
    return read_synonyms(path)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Dogs and puppies.", ["dog", "dog"]),
        ("a dog's bed", ["dog"]),
        ("a baby dog", ["dog"]),  # not a person
        ("a baby and a dog", ["person", "dog"]),
        ("a passenger train", ["train"]),
        ("A wine glass, wine glasses, a glass", ["wine glass", "wine glass"]),  # "wine glas", "wine glass"
        ("the bus; two buses; a minibus; minibuses", ["bus", "bus"]),  # the singular is lost
        ("a bow tie, a bow, ties", ["tie", "tie"]),
        ("a motor bike and a motor cycle", ["motorcycle"]),  # the table keeps a blank before "motor bike"
        ("the seat of the toilet", ["toilet"]),
        ("a toilet seat near a seat", ["toilet"]),
        ("a seat", ["chair"]),
        ("an orange shirt", ["orange"]),
        ("a hot dog", ["hot dog"]),
        ("a train on a train track", ["train"]),
        ("people, children and men", ["person", "person", "person"]),
        ("dog.dog", []),
        ("**A dog.** A cup", ["dog", "cup"]),
        ("a dog.(a cup)", ["dog", "cup"]),
        ("a cup-shaped dog/cup", []),
        ("", []),
    ],
)
def test_object_words_follow_the_official_rules(caption: str, found: list[str], tmp_path: Path) -> None:
    table = nodes(tmp_path)
    assert [w.node for w in object_words(caption, table)] == found


WIDER = """cell phone, phone, iPhone
cake,  cheesecake
airplane, jet, passenger jet, airbus
boat, canoe
bird, magpie
dog, doggie, collie
oven, stove, stove top oven
bear
plate
skis, ski
"""
"""Lines of another table; two blanks stand before `cheesecake`."""


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("an iPhone, a phone", ["cell phone"]),  # captions are put in lower case, the table is not
        ("a cheesecake and cakes", ["cake"]),
        ("an airbus, a passenger jet", ["airplane"]),  # "airbu"
        ("canoes; a canoe", ["boat"]),  # "cano"
        ("magpies, a magpie, doggies, collies, a collie", ["bird", "dog"]),  # nouns in -ie keep their plural
        ("a stove top oven", ["oven", "oven"]),
        ("an adult bear beside a baby bear", ["bear", "bear"]),
        ("home plate", []),
        ("a pair of skis", ["skis"]),
    ],
)
def test_the_official_tables_slips_are_kept(caption: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "wider.txt").write_text(WIDER)
    assert [w.node for w in object_words(caption, read_synonyms(tmp_path / "wider.txt"))] == found


def test_captions_are_read_as_the_shared_cases_say() -> None:
    table = read_synonyms(fixture("chair_synonyms.txt"))
    for case in fixture_lines("chair_caption_cases.jsonl"):
        words = object_words(case["caption"], table)
        assert [w.word for w in words] == case["words"], case["caption"]
        assert [w.node for w in words] == case["node_words"], case["caption"]


def test_tokens_become_singular_as_the_shared_cases_say() -> None:
    cases = json.loads(fixture("chair_singularize_cases.json").read_text())
    assert {token: singularize(token) for token in cases} == cases


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("dogs", "dog"),
        ("buses", "bus"),
        ("bus", "bu"),
        ("glass", "glas"),
        ("ties", "ty"),
        ("collies", "collies"),
        ("knives", "knife"),
        ("mice", "mouse"),
        ("women", "woman"),
        ("people", "person"),
        ("scissors", "scissors"),
        ("s", "s"),
        ("dogs'", "dog's"),
        ("skies", "sky"),
        ("skis", "ski"),
        ("four", "fmy"),
        ("mothers-in-law", "mother-in-law"),
    ],
)
def test_singulars_are_as_crude_as_the_official_ones(plural: str, singular: str) -> None:
    assert singularize(plural) == singular


PIECES = """
    a the cat dogs tv's isn't it's dogs' 'cat' "dog" (cat) cat. cat.) **cat.** cat! cat? cats, cats:
    10:30 1,000 3.5 cat... cat--dog
    stop-sign can't cannot they'll '90s ' " '' `` “cat” ‘cat’ dog’s — - -- * # & % ; cat.'
    cat." cat.(dog cat,dog ,5 :5 ,, .. rock'n'roll he'd've 'em ) ( [ ] < > <cat> .cat cat.dog bus/car cat.” …
    _cat_ ''cat''"""


def test_tokens_equal_nltks_but_for_quotes_and_abbreviations() -> None:
    nltk_word = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer()
    sentences = pytest.importorskip("nltk.tokenize.punkt").PunktSentenceTokenizer()  # knows no abbreviation
    pieces = [*PIECES.split(), "\n"]
    rng = random.Random(1)
    for _ in range(1500):
        text = "".join(
            rng.choice(pieces) + rng.choice([" ", " ", " ", "", "  "]) for _ in range(rng.randint(1, 9))
        )
        expected = [t for s in sentences.tokenize(text) for t in nltk_word.tokenize(s)]
        found = tokenize(text)
        assert all(text[start:end] == token for token, start, end in found)
        assert _plain(t for t, _, _ in found) == _plain(expected), repr(text)


def _plain(tokens: Any) -> list[str]:
    """Quotation marks alike; no dot that Punkt's guess about numbers and initials keeps or splits."""
    kept = []
    for token in tokens:
        token = '"' if token in ("``", "''") else token
        token = token[:-1] if len(token) > 1 and token.endswith(".") and not token.endswith("..") else token
        if token != ".":
            kept.append(token)
    return kept


def test_an_images_objects_are_its_instances_and_those_of_its_captions(root: Path) -> None:
    scores = score_all(chair(root), ["A dog and a man and a cup.", "A cup on an orange table.", "A bus."])
    assert [s.id for s in scores] == ["11", "7", "3"]
    by_id = {
        s.id: s for s in score_all(chair(root), ["The people.", "A dog and a man.", "a cup, a dog, a puppy"])
    }
    assert by_id["7"].truth == "dog, person"
    assert by_id["11"].truth == "bus, person"
    assert by_id["3"].counts == {
        "captions": 1,
        "hallucinated_captions": 1,
        "object_words": 3,
        "hallucinated_words": 2,
        "true_objects": 1,
        "named_objects": 1,
        "words": 6,
    }


def test_scores_are_ratios_of_sums(root: Path) -> None:
    one = chair(root, images=[7, 3])
    scores = score_all(one, ["A dog.", "a cup, a dog, a puppy"])
    metrics = one.metrics(sum_counts(scores))
    assert metrics["chair_s"] == 50
    assert metrics["chair_i"] == 50  # 2 of 4 object words
    assert metrics["chair"] == 50
    assert metrics["recall"] == pytest.approx(200 / 3)  # dog and cup, of dog, person and cup
    assert metrics["length"] == 4
    assert metrics["objects"] == 2
    arrays = one.metrics({k: np.array([v, 2 * v]) for k, v in sum_counts(scores).items()})
    np.testing.assert_allclose(arrays["chair_i"], [50, 50])
    assert np.isnan(one.metrics({})["chair_i"])


def test_marks_show_which_characters_are_right_and_wrong(root: Path) -> None:
    text = "A man's DOG, two wine glass cups."
    score = chair(root).score_caption(7, text)
    assert [(text[a:b], kind) for a, b, kind in score.marks] == [
        ("man", "right"),
        ("DOG", "right"),
        ("wine glass", "wrong"),
        ("cups", "wrong"),
    ]
    assert score.cluster == "COCO_val2014_000000000007.jpg"


def test_requests_carry_prompt_decoding_and_image(root: Path) -> None:
    benchmark = chair(
        root, images=[7], temperature=1.0, seed=5, prompt="Describe.", max_new_tokens=64, name="t1"
    )
    (request,) = benchmark.requests()
    assert request.id == "7"
    assert request.turns[0].text == "Describe."
    assert (request.decoding.temperature, request.decoding.seed, request.decoding.max_new_tokens) == (
        1.0,
        5,
        64,
    )
    assert request.image == str(root / "images" / "COCO_val2014_000000000007.jpg")
    assert "original variant" in benchmark.protocol
    assert "1 images" in benchmark.protocol
    assert benchmark.name == "t1"


def test_the_image_list_is_a_file_of_ids_or_names(root: Path) -> None:
    (root / "a.txt").write_text("3\nCOCO_train2014_000000000011.jpg\n")
    (root / "b.json").write_text("[3, 11]")
    for name in ("a.txt", "b.json"):
        assert chair(root, images=str(root / name)).asked() == [3, 11]
    (root / "c.txt").write_text("3\n5\n")
    with pytest.raises(UserError, match=r"c.txt: image 5 is not in the COCO annotations"):
        chair(root, images=str(root / "c.txt")).asked()
    with pytest.raises(UserError, match="image 3 is listed twice"):
        chair(root, images=[3, 3]).asked()


def test_annotations_of_both_halves_are_needed_and_categories_must_be_in_the_table(root: Path) -> None:
    (root / "annotations" / "captions_train2014.json").unlink()
    with pytest.raises(UserError, match=r"captions_train2014.json: no such file"):
        chair(root).requests()
    assert chair(root, splits=["val2014"]).asked() == [7, 3]
    (root / "synonyms.txt").write_text("dog, puppy\n")
    with pytest.raises(UserError, match=r"synonyms.txt: has no class `person`"):
        chair(root, splits=["val2014"]).requests()


def test_a_broken_annotation_file_is_one_error_with_its_place(root: Path) -> None:
    path = root / "annotations" / "instances_val2014.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"instances_val2014.json: line 1: not JSON"):
        chair(root).requests()
    data = json.loads(text)
    del data["annotations"][1]["category_id"]
    write_json(path, data)
    with pytest.raises(UserError, match="annotation 1: has no field `category_id`"):
        chair(root).requests()


def test_every_caption_of_a_file_counts_and_an_unknown_image_has_no_objects(root: Path) -> None:
    captions = answers([(7, "A dog."), (7, "A dog."), (99, "A cup.")])
    summary, scores = summarise(chair(root), captions)
    assert [s["score"]["counts"]["hallucinated_words"] for s in scores] == [0, 0, 1]
    assert summary["metrics"]["chair_i"] == pytest.approx(100 / 3)
    assert (summary["complete"], summary["duplicate"]["ids"], summary["unknown"]["ids"]) == (False, [7], [99])
    listed, _ = summarise(chair(root, images=[7, 3]), answers([(7, "A dog.")]))
    assert (listed["answered"], listed["expected"], listed["missing"]["ids"]) == (1, 2, [3])


def test_captions_without_object_words_divide_by_zero_and_stop(root: Path) -> None:
    with pytest.raises(UserError, match="chair_i divides by zero"):
        summarise(chair(root), answers([(7, "A wall.")]))


def test_captions_are_read_from_lines_lists_and_the_originals_own_form(tmp_path: Path) -> None:
    rows = [{"image_id": 7, "caption": "A dog."}, {"image_id": 3, "caption": "A cup."}]
    llava = [{"question_id": r["image_id"], "prompt": "p", "text": r["caption"]} for r in rows]
    forms = {
        "lines.jsonl": "".join(json.dumps(r) + "\n" for r in rows),
        "llava.jsonl": "".join(json.dumps(r) + "\n" for r in llava),
        "list.json": json.dumps(rows),
        "original.json": json.dumps({"overall": {}, "imgToEval": {str(k): r for k, r in enumerate(rows)}}),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        read = read_answers(tmp_path / name)
        assert [(line.id, line.text) for line in read] == [(7, "A dog."), (3, "A cup.")], name


def test_a_captions_image_is_its_image_id_whatever_else_the_line_counts(root: Path) -> None:
    forms = [
        {"question_id": 0, "image_id": 7, "prompt": "p", "text": "A dog."},  # POPE's caption files
        {"image_id": 7, "text": "A dog."},
        {"image": "COCO_val2014_000000000007.jpg", "caption": "A dog."},
        {"question_id": 7, "image": "elsewhere.jpg", "text": "A dog."},
    ]
    for row in forms:
        path = write_json(root / "c.json", [row])
        summary, _ = summarise(chair(root), read_answers(path))
        assert (summary["metrics"]["chair_i"], summary["complete"]) == (0, True), row
        assert "1 images" in summary["protocol"]
    path = write_json(root / "c.json", [{"image_id": "7", "caption": "A dog."}])  # text is no number: unknown
    summary, _ = summarise(chair(root), read_answers(path))
    assert (summary["metrics"]["chair_i"], summary["unknown"]["ids"]) == (100, ["7"])


def test_five_thousand_long_captions_take_seconds(tmp_path: Path) -> None:
    table = nodes(tmp_path)
    text = "The image shows a dog's bed near people, a wine glass and (perhaps) two minibuses. " * 6
    started = time.perf_counter()
    for k in range(500):
        object_words(f"{text} {k}", table)
    assert time.perf_counter() - started < 3  # a tenth of half a minute


def test_objects_are_found_in_any_text_as_written_and_without_annotations(root: Path) -> None:
    (root / "annotations" / "instances_val2014.json").unlink()
    assert chair(root).objects_in("No Dogs here, but a wine glass.") == ["Dogs", "wine glass"]
