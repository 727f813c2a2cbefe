"""OCR-VQA, TextCaps, LLaVA's mix and mixtures of them: what is read from files in the official formats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsft_exp.records import Exchange, Sample, UserError
from nsft_exp.source import reading
from nsft_exp.source.llava_json import LlavaJson
from nsft_exp.source.mixed import Mixed
from nsft_exp.source.ocrvqa import OcrVqa
from nsft_exp.source.textcaps import TextCaps
from source_files import (
    CAPTION,
    FIXTURES,
    MIX,
    SHORT,
    book,
    caption_rows,
    instruct,
    ocr,
    picture,
    talk,
    textcaps,
    write,
)

Make = Callable[..., Any]


def by_id(source: Any) -> dict[str, Sample]:
    return {sample.id: sample for sample in source.samples()}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a value as a file and return a source of this class on it; images are not opened."""

    def source(kind: Any, value: Any, **options: Any) -> Any:
        file = write(tmp_path / "data.json", value)
        return kind(file, str(tmp_path), **{"check": False, **options})

    return source


# --- OCR-VQA -----------------------------------------------------------------------------------------

BOOKS = {"014000001": book(1), "014000002": book(2, extension="gif"), "B00X": book(3, split=3)}


def test_a_book_gives_one_question_without_the_others_and_asks_for_a_short_answer(make: Make) -> None:
    samples = by_id(make(OcrVqa, BOOKS, turn="first", prompt_suffix=SHORT))
    assert sorted(samples) == ["014000001", "014000002"]
    one = samples["014000001"]
    assert (one.question, one.answer) == (f"Who wrote this book?{SHORT}", "Writer 1")
    assert one.history == ()
    assert one.meta == {"title": "Title 1", "authorName": "Writer 1", "genre": "Travel", "split": 1}


def test_a_books_image_has_its_key_and_the_extension_of_its_url(make: Make, tmp_path: Path) -> None:
    found = {key: s.image for key, s in by_id(make(OcrVqa, BOOKS)).items()}
    folder = tmp_path / "ocr_vqa/images"
    assert found == {
        "014000001": str(folder / "014000001.jpg"),
        "014000002": str(folder / "014000002.gif"),
    }
    named = by_id(make(OcrVqa, BOOKS, extension=".jpg"))
    assert named["014000002"].image == str(folder / "014000002.jpg")


@pytest.mark.parametrize(("split", "keys"), [("test", ["B00X"]), ("validation", []), ("all", list(BOOKS))])
def test_books_of_one_split_are_read(make: Make, split: str, keys: list[str]) -> None:
    source = make(OcrVqa, BOOKS, split=split)
    if keys:
        assert sorted(by_id(source)) == sorted(keys)
    else:
        with pytest.raises(UserError, match="no record is left of 3"):
            source.samples()


def test_all_questions_of_a_book_are_samples_of_their_own(make: Make) -> None:
    samples = by_id(make(OcrVqa, {"1": book(1)}, turn="all"))
    assert {key: s.answer for key, s in samples.items()} == {"1#0": "Writer 1", "1#1": "Title 1", "1#2": "No"}
    assert not any(s.history for s in samples.values())
    later = by_id(make(OcrVqa, {"1": book(1)}, turn="last", history=True))["1"]
    assert later.history[0] == Exchange("Who wrote this book?", "Writer 1")


def test_a_random_question_of_a_book_is_the_same_every_time(make: Make) -> None:
    books = {f"{n:09d}": book(n) for n in range(40)}
    drawn = [
        {k: s.question for k, s in by_id(make(OcrVqa, books, turn="random", seed=seed)).items()}
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0].values())) == 3


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (book(1, answers=["only one"]), "has 3 questions but 1 answers"),
        (book(1, questions=[], answers=[]), "has no list of `questions`"),
        (book(1, answers=["A", 7, "No"]), "answer 2 has no text in `answers`"),
        (book(1, answers=["A", " ", "No"]), "question 2 or its answer is empty"),
        (book(1, split="train"), "`split` is 'train', not 1, 2 or 3"),
        (book(1, imageURL="http://x.org/no"), "`imageURL` has no extension"),
        (["a"], "has no `imageURL`"),
    ],
)
def test_a_broken_book_is_one_line(make: Make, tmp_path: Path, broken: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        make(OcrVqa, {"good": book(2), "0140": broken}).samples()
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / 'data.json'}: record 0140: ")
    assert message in text
    assert "\n" not in text


def test_the_mixs_part_is_read_by_the_same_source(make: Make, tmp_path: Path) -> None:
    (one,) = make(OcrVqa, MIX, turn="last", prompt_suffix=SHORT).samples()
    assert (one.id, one.question, one.answer) == ("0140000001", f"What is its genre?{SHORT}", "Travel")
    assert one.image == str(tmp_path / "ocr_vqa/images/0140000001.jpg")
    assert one.cluster == "ocr_vqa/images/0140000001.jpg"


def test_in_a_conversation_the_mix_asks_for_a_short_answer_once(make: Make) -> None:
    (one,) = make(OcrVqa, MIX, turn="last", history=True, prompt_suffix=SHORT).samples()
    assert one.question == "What is its genre?"
    assert one.history == (Exchange(f"Who wrote this book?{SHORT}", "A. Writer"),)


# --- TextCaps ----------------------------------------------------------------------------------------

ROWS = [*caption_rows("00aa"), *caption_rows("11bb")]


def test_an_image_with_five_captions_is_one_sample_with_its_ocr_tokens(make: Make, tmp_path: Path) -> None:
    tokens = write(tmp_path / "ocr.json", ocr({"00aa": ["STOP", "4-WAY"], "11bb": []}))
    source = make(TextCaps, textcaps(ROWS), ocr_file=tokens)
    samples = by_id(source)
    assert {k: s.answer for k, s in samples.items()} == {
        "00aa": "Caption 0 of 00aa.",
        "11bb": "Caption 0 of 11bb.",
    }
    assert samples["00aa"].question == f"{CAPTION}\nReference OCR token: STOP, 4-WAY"
    assert samples["11bb"].question == f"{CAPTION}\nReference OCR token: "
    assert samples["00aa"].image == str(tmp_path / "textvqa/train_images/00aa.jpg")
    assert samples["00aa"].meta["references"] == [f"Caption {n} of 00aa." for n in range(5)]
    assert source.counts["further records of an id"] == 8
    assert [file.name for file in source.files()] == ["data.json", "ocr.json"]


def test_without_an_ocr_file_the_prompt_has_no_line_of_tokens(make: Make) -> None:
    assert {s.question for s in make(TextCaps, textcaps(ROWS)).samples()} == {CAPTION}


def test_a_caption_can_be_drawn_or_every_one_taken(make: Make) -> None:
    rows = [row for n in range(30) for row in caption_rows(f"{n:04d}")]
    drawn = by_id(make(TextCaps, textcaps(rows), caption="random"))
    assert len(drawn) == 30
    assert len({s.answer.split()[1] for s in drawn.values()}) == 5
    every = by_id(make(TextCaps, textcaps(ROWS), caption="all"))
    assert len(every) == 10
    assert every["11bb#3"].answer == "Caption 3 of 11bb."


def test_the_mixs_captions_are_read_by_the_same_source_and_keep_their_tokens(make: Make) -> None:
    (one,) = make(TextCaps, MIX, ocr_file="/nowhere.json").samples()
    assert (one.question, one.answer) == (f"{CAPTION}\nReference OCR token: STOP", "A stop sign.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption_str": None}, "the caption (the test split has none) has no text in `caption_str`"),
        ({"caption_str": "  "}, "the caption is empty"),
        ({"image_id": None}, "has no `image_id`"),
    ],
)
def test_a_broken_row_of_captions_is_one_line(make: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        make(TextCaps, textcaps([{**ROWS[0], **change}])).samples()
    assert message in str(refused.value)
    assert "record " in str(refused.value)


def test_an_image_path_of_captions_cannot_lead_elsewhere(make: Make, tmp_path: Path) -> None:
    (one,) = make(TextCaps, textcaps([{**ROWS[0], "image_path": "../../etc/x.jpg"}])).samples()
    assert one.image == str(tmp_path / "textvqa/train_images/x.jpg")


def test_ocr_tokens_of_another_split_and_a_missing_file_are_refused(make: Make, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", ocr({"zz": []}))
    with pytest.raises(UserError, match=r"record 00aa: has no row in .*other.json"):
        make(TextCaps, textcaps(ROWS), ocr_file=other).samples()
    with pytest.raises(UserError, match=r"no.json: there is no such file; check source.ocr_file"):
        make(TextCaps, textcaps(ROWS), ocr_file=str(tmp_path / "no.json"), broken="drop").samples()


# --- which samples, and how they are held ------------------------------------------------------------

SOURCES: dict[str, tuple[Any, Any]] = {
    "llava": (LlavaJson, [instruct(n) for n in range(60)]),
    "ocrvqa": (OcrVqa, {f"{n:09d}": book(n) for n in range(60)}),
    "textcaps": (TextCaps, textcaps([row for n in range(60) for row in caption_rows(f"{n:04d}", 2)])),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_draws_nested_subsets_by_hash_of_seed_and_id(make: Make, name: str) -> None:
    kind, value = SOURCES[name]
    sizes = {n: [s.id for s in make(kind, value, size=n, seed=3).samples()] for n in (12, 25, 50, 60)}
    order = sorted(sizes[60], key=lambda key: hashlib.sha256(f"3/{key}".encode()).hexdigest())
    assert [sizes[n] for n in sizes] == [order[:n] for n in sizes]


@pytest.mark.parametrize("name", SOURCES)
def test_samples_are_read_again_one_by_one_and_are_the_same(make: Make, name: str) -> None:
    kind, value = SOURCES[name]
    samples = make(kind, value, size=20).samples()
    listed = list(samples)
    assert [samples[n] for n in range(20)] == listed
    assert samples[-1] == listed[-1]
    assert list(samples[5:9]) == listed[5:9]
    with pytest.raises(IndexError):
        samples[20]


def test_records_are_found_again_behind_text_of_several_bytes(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(reading, "CHUNK", 11)
    records = [
        {"id": str(n), "conversations": talk(f"Was steht da {n}? ☃ \U0001f600", "Grüße,\nMünchen")}
        for n in range(9)
    ]
    text = json.dumps(records, ensure_ascii=False, indent=1)
    samples = make(LlavaJson, text).samples()
    assert {(s.id, s.question) for s in samples} == {
        (str(n), f"Was steht da {n}? ☃ \U0001f600") for n in range(9)
    }


def test_a_file_that_changed_while_it_is_used_is_refused(make: Make, tmp_path: Path) -> None:
    samples = make(LlavaJson, [instruct(n) for n in range(4)]).samples()
    write(tmp_path / "data.json", [instruct(n) for n in range(100, 105)])
    with pytest.raises(UserError, match="was changed while it was read"):
        list(samples)


def test_broken_records_can_be_left_out_and_are_counted_and_named(make: Make, tmp_path: Path) -> None:
    records = [instruct(1), {"id": "x", "conversations": []}, instruct(2), {"id": "y"}]
    source = make(LlavaJson, records, broken="drop")
    assert len(source.samples()) == 2
    assert source.counts["broken records"] == 2
    assert [p.split(": ")[1] for p in source.problems] == ["record x", "record y"]


def test_half_a_character_is_refused_and_not_carried_on(make: Make) -> None:
    broken = [{"id": "h", "conversations": talk("Hello?", "Half \ud83d a smile")}]
    with pytest.raises(UserError, match="record h: turn 2 holds half a character"):
        make(LlavaJson, json.dumps(broken)).samples()


def test_a_byte_order_mark_is_named(make: Make) -> None:
    with pytest.raises(UserError, match="begins with a byte order mark"):
        make(LlavaJson, "\ufeff" + json.dumps([instruct(1)])).samples()


# --- mixtures ----------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    built = {}
    for name, (kind, value) in SOURCES.items():
        file = write(tmp_path / f"{name}.json", value)
        built[name] = kind(file, str(tmp_path), check=False)
    return built


def test_a_mixture_takes_equal_parts_and_smaller_ones_are_beginnings(parts: dict[str, Any]) -> None:
    ids = {size: [s.id for s in Mixed(parts, size).samples()] for size in (9, 30, 31)}
    assert ids[31][:30] == ids[30]
    assert ids[30][:9] == ids[9]
    assert [key.split("/")[0] for key in ids[9]] == ["llava", "ocrvqa", "textcaps"] * 3
    own = [s.id for s in parts["ocrvqa"].draw(3)]
    assert ids[9][1::3] == [f"ocrvqa/{key}" for key in own]


def test_a_mixtures_samples_are_the_same_by_number_and_in_order(parts: dict[str, Any]) -> None:
    samples = Mixed(parts, 10).samples()
    assert [samples[n] for n in range(10)] == list(samples) == samples[:]
    assert samples[-1].id == samples[9].id


def test_a_part_that_is_too_small_is_named(parts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"source.parts.llava \(a share of 100\): .*has 60 samples"):
        Mixed(parts, 300).samples()


def test_the_mixed_yaml_draws_five_thousand_of_each(tmp_path: Path) -> None:
    from nsft_exp import config as configs

    plain = configs.resolved(configs.compose_config(["source=mixed", "data_seed=4"]))["source"]
    assert (plain["size"], list(plain["parts"])) == (15000, ["llava150k", "ocrvqa", "textcaps"])
    assert {part["seed"] for part in plain["parts"].values()} == {4}


# --- the shared fixtures in the official formats -----------------------------------------------------

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are not here")


@needs_fixtures
@pytest.mark.parametrize(
    ("kind", "name", "options", "expected"),
    [
        (
            LlavaJson,
            "llava_instruct_150k.json",
            {"turn": "all"},
            {
                "000000000009#0": ("What is on the plate?", "A slice of bread."),
                "000000000009#1": ("Is it toasted?", "Yes, lightly."),
                "000000000025#0": ("Describe the animal.", "A tall giraffe beside a tree."),
            },
        ),
        (
            LlavaJson,
            "llava_v1_5_mix665k.json",
            {"images": "without"},
            {"wgByO4Y_0": ("Say hello.", "Hello!")},
        ),
        (
            OcrVqa,
            "llava_v1_5_mix665k.json",
            {"turn": "last"},
            {"0140000001": ("What is the genre of this book?", "Travel")},
        ),
        (
            TextCaps,
            "llava_v1_5_mix665k.json",
            {},
            {
                "00aa11bb22cc33dd": (
                    f"{CAPTION}\nReference OCR token: STOP, 4-WAY",
                    "A red stop sign that says 4-way.",
                )
            },
        ),
        (
            OcrVqa,
            "ocrvqa_dataset.json",
            {"split": "test", "turn": "first"},
            {"0140000002": ("What is the genre of this book?", "Cookbooks")},
        ),
        (
            TextCaps,
            "TextCaps_0.1_train.json",
            {"ocr_file": str(FIXTURES / "TextVQA_Rosetta_OCR_v0.2_train.json")},
            {
                "00aa11bb22cc33dd": (
                    f"{CAPTION}\nReference OCR token: STOP, 4-WAY",
                    "A red stop sign that says 4-way.",
                )
            },
        ),
    ],
)
def test_the_shared_fixtures_are_read(kind: Any, name: str, options: dict[str, Any], expected: Any) -> None:
    source = kind(str(FIXTURES / name), "data", check=False, **options)
    assert {s.id: (s.question, s.answer) for s in source.samples()} == expected


def test_images_are_opened_only_for_the_samples_that_are_drawn(make: Make, tmp_path: Path) -> None:
    chosen = [s.id for s in make(OcrVqa, SOURCES["ocrvqa"][1], size=4).samples()]
    for n, key in enumerate(chosen):
        picture(tmp_path / f"ocr_vqa/images/{key}.jpg", n)
    assert len(make(OcrVqa, SOURCES["ocrvqa"][1], size=4, check=True).samples()) == 4
    with pytest.raises(UserError, match="there is no such image"):
        make(OcrVqa, SOURCES["ocrvqa"][1], size=5, check=True).samples()
