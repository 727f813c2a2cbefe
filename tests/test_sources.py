"""Sources in LLaVA's format: what is read, which samples are chosen, and what is refused, in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nsft_exp.records import Exchange, UserError
from nsft_exp.source import reading
from nsft_exp.source.llava_json import LlavaJson

Turns = list[dict[str, str]]
Make = Callable[..., LlavaJson]


def talk(*texts: str) -> Turns:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def record(number: int, *texts: str, **more: Any) -> dict[str, Any]:
    texts = texts or (f"<image>\nWhat is in picture {number}?", f"A thing, {number}.")
    return {"id": f"{number:04d}", "image": f"{number}.png", "conversations": talk(*texts), **more}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write records (or text) as an annotation file with the images that they name, and return its source."""

    def source(records: list[Any] | str | bytes, **options: Any) -> LlavaJson:
        file, root = tmp_path / "data.json", tmp_path / "images"
        if isinstance(records, (str, bytes)):
            file.write_bytes(records.encode() if isinstance(records, str) else records)
        else:
            file.write_text(json.dumps(records))
            for name in (
                r["image"] for r in records if isinstance(r, dict) and isinstance(r.get("image"), str)
            ):
                if not os.path.isabs(name) and ".." not in name:
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (4, 3), (len(name), 0, 0)).save(root / name)
        root.mkdir(exist_ok=True)
        return LlavaJson(str(file), str(root), **options)

    return source


# --- what is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question", ["<image>\nWhat is it?", "What is it?\n<image>", " <image> What is it? "]
)
def test_the_image_token_leads_or_trails_and_is_taken_out(make: Make, question: str) -> None:
    (sample,) = make([record(1, question, " A cat. ")]).samples()
    assert (sample.question, sample.answer) == ("What is it?", "A cat.")
    assert sample.image is not None
    assert sample.image.endswith(os.path.join("images", "1.png"))
    assert sample.cluster == "1.png"
    assert sample.id == "0001"


def test_a_record_without_an_image_is_text_only(make: Make) -> None:
    text = {"id": "t", "model": "", "conversations": talk("Say hello.", "Hello!")}
    records = [text, record(1)]
    assert {s.id: s.image is None for s in make(records).samples()} == {"t": True, "0001": False}


def test_records_with_or_without_images_can_be_chosen(make: Make, tmp_path: Path) -> None:
    make([{"id": "t", "conversations": talk("Say hello.", "Hello!")}, record(1)])
    for wanted, ids in (("with", ["0001"]), ("without", ["t"])):
        source = LlavaJson(str(tmp_path / "data.json"), str(tmp_path / "images"), images=wanted)  # type: ignore[arg-type]
        assert [s.id for s in source.samples()] == ids


def test_an_image_prefix_keeps_one_part_of_a_mixture(make: Make) -> None:
    records = [
        record(1, image="textvqa/a.png"),
        record(2, image="coco/a.png"),
        record(3, image="textvqa/b.png"),
    ]
    chosen = make(records, image_prefix="textvqa/").samples()
    assert sorted(s.id for s in chosen) == ["0001", "0003"]


TURNS = ("<image>\nQ1", "A1", "Q2", "A2", "Q3", "A3")


@pytest.mark.parametrize(("turn", "number"), [("first", 0), ("last", 2)])
def test_the_aligned_answer_has_the_exchanges_before_it_as_history(
    make: Make, turn: str, number: int
) -> None:
    (sample,) = make([record(1, *TURNS)], turn=turn).samples()
    exchanges = [Exchange(f"Q{n}", f"A{n}") for n in (1, 2, 3)]
    assert Exchange(sample.question, sample.answer) == exchanges[number]
    assert sample.history == tuple(exchanges[:number])


def test_every_answer_can_be_aligned_each_as_a_sample_of_its_own(make: Make) -> None:
    samples = sorted(make([record(1, *TURNS)], turn="all").samples(), key=lambda s: s.id)
    assert [(s.id, s.answer, len(s.history)) for s in samples] == [
        ("0001#0", "A1", 0),
        ("0001#1", "A2", 1),
        ("0001#2", "A3", 2),
    ]


def test_a_random_answer_is_the_same_every_time_and_differs_between_seeds(make: Make) -> None:
    records = [record(n, *TURNS) for n in range(30)]
    drawn = [
        {s.id: s.answer for s in make(records, turn="random", seed=seed).samples()} for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0].values()) == {"A1", "A2", "A3"}


def test_a_prompt_suffix_is_added_once(make: Make) -> None:
    records = [record(1, "<image>\nWho?\nBriefly.", "Me."), record(2, "<image>\nWho?", "You.")]
    assert {s.question for s in make(records, prompt_suffix="\nBriefly.").samples()} == {"Who?\nBriefly."}


def test_ids_that_name_an_image_twice_are_told_apart(make: Make) -> None:
    records = [record(1), record(1, "<image>\nSecond?", "Yes."), record(2)]
    assert sorted(s.id for s in make(records).samples()) == ["0001", "0001~2", "0002"]


def test_what_else_a_record_has_is_kept(make: Make) -> None:
    (sample,) = make([record(1, annotation={"scene": "office"})]).samples()
    assert sample.meta == {"annotation": {"scene": "office"}}


# --- which samples -----------------------------------------------------------------------------------


def test_a_smaller_size_is_the_beginning_of_a_larger_one(make: Make) -> None:
    records = [record(n) for n in range(40)]
    ids = {size: [s.id for s in make(records, size=size).samples()] for size in (5, 20, None)}
    assert ids[None][:20] == ids[20]
    assert ids[20][:5] == ids[5]
    assert sorted(ids[None]) == [f"{n:04d}" for n in range(40)] != ids[None]
    assert [s.id for s in make(records, size=20, seed=1).samples()] != ids[20]


def test_the_choice_does_not_depend_on_the_order_of_the_file(make: Make) -> None:
    records = [record(n) for n in range(40)]
    one = [s.id for s in make(records, size=9).samples()]
    assert one == [s.id for s in make(records[::-1], size=9).samples()]


def test_the_draw_is_the_same_on_every_machine(make: Make) -> None:
    import hashlib

    order = sorted(range(12), key=lambda n: hashlib.sha256(f"5/{n:04d}".encode()).hexdigest())
    assert [s.id for s in make([record(n) for n in range(12)], seed=5).samples()] == [
        f"{n:04d}" for n in order
    ]


def test_long_files_are_read_in_pieces(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 7)
    records = [record(n, "<image>\nWas für ein Bild? ☃", 'He said "a [cat], {here}".') for n in range(5)]
    samples = make(json.dumps(records, indent=2, ensure_ascii=False), check=False).samples()
    assert len(samples) == 5
    assert samples[0].answer == 'He said "a [cat], {here}".'


def test_files_are_made_first_where_someone_makes_them(tmp_path: Path) -> None:
    class Maker:
        def ensure(self) -> None:
            (tmp_path / "d.json").write_text(json.dumps([{"conversations": talk("Hi.", "Hello.")}]))

    source = LlavaJson(str(tmp_path / "d.json"), str(tmp_path), files_from=Maker())
    assert [s.id for s in source.samples()] == ["0"]
    assert source.files() == [tmp_path / "d.json"]


# --- what is refused ---------------------------------------------------------------------------------

BAD_RECORDS = {
    "no turns": ({"id": "x", "conversations": []}, "record x: has no `conversations`"),
    "no conversations": ({"id": "x"}, "record x: has no `conversations`"),
    "no answer": (record(7, "<image>\nQ"), "record 0007: the last human turn has no answer"),
    "wrong order": (
        {"id": "x", "conversations": talk("A", "B")[::-1]},
        "record x: turn 1 is from 'gpt', not 'human'",
    ),
    "two questions": (
        {"id": "x", "conversations": [talk("Q")[0], talk("Q")[0]]},
        "record x: turn 2 is from 'human', not 'gpt'",
    ),
    "no image token": (record(7, "Q", "A"), "record 0007: `<image>` occurs 0 times; it must stand once"),
    "two image tokens": (record(7, "<image>\n<image>\nQ", "A"), "record 0007: `<image>` occurs 2 times"),
    "image token in an answer": (record(7, "Q", "<image>A"), "not only in the first turn"),
    "image token in a later turn": (record(7, "Q", "A", "<image>", "B"), "not only in the first turn"),
    "image token without an image": (
        {"id": "x", "conversations": talk("<image>\nQ", "A")},
        "must stand nowhere, since the record has no image",
    ),
    "empty answer": (record(7, "<image>\nQ", "  "), "record 0007: turn 2 is empty"),
    "empty question": (record(7, "<image>\n", "A"), "record 0007: turn 1 is empty"),
    "answer that is no text": (
        {"id": "x", "conversations": [talk("Q")[0], {"from": "gpt", "value": None}]},
        "record x: turn 2 has no text in `value`",
    ),
    "climbing path": (record(7, image="../secret.png"), "record 0007: image `../secret.png` lies outside"),
    "absolute path": (record(7, image="/etc/passwd"), "record 0007: image `/etc/passwd` lies outside"),
    "image that is no path": (record(7, image=["a.png"]), "record 0007: `image` is not a path"),
    "record that is no object": (["Q", "A"], "record 1: is not an object"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_one_line_with_file_and_id(make: Make, tmp_path: Path, name: str) -> None:
    bad, message = BAD_RECORDS[name]
    with pytest.raises(UserError) as refused:
        make([record(1), bad]).samples()
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / 'data.json'}: record ")
    assert message in text
    assert "\n" not in text
    assert ";" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([record(1), record(2)])[:-60], "record number 1: not JSON"),
        (json.dumps([record(1), record(2)])[:-1], "after 2 records the list does not end"),
        (json.dumps([record(1)]) + "]", "followed or parted by something else"),
        ("", "is not a list of records"),
        ("[]", "is not a list of records"),
        ('{"id": 1}', "is not a list of records"),
        (b"[\xff\xfe]", "is not UTF-8"),
    ],
)
def test_a_broken_file_is_one_line(make: Make, tmp_path: Path, content: str | bytes, message: str) -> None:
    source = make(content, check=False)
    with pytest.raises(UserError) as refused:
        source.samples()
    text = str(refused.value)
    assert text.startswith(str(tmp_path / "data.json"))
    assert message in text
    assert "\n" not in text


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.json: there is no such file; check source.file"):
        LlavaJson(str(tmp_path / "no.json"), str(tmp_path)).samples()


def test_a_size_beyond_the_source_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"has 3 samples, fewer than source.size=4; lower it"):
        make([record(n) for n in range(3)], size=4).samples()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"turn": "middle"}, "source.turn=middle"), ({"size": 0}, "source.size=0")],
)
def test_an_unknown_choice_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LlavaJson("a.json", "b", **options)


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def _text(path: Path) -> None:
    path.write_text("no image")


@pytest.mark.parametrize(
    ("break_image", "message"),
    [
        (_missing, "there is no such image"),
        (_empty, "empty"),
        (_cut, "cannot be decoded"),
        (_text, "not an image"),
    ],
)
def test_a_bad_image_is_found_before_any_work(
    make: Make, tmp_path: Path, break_image: Callable[[Path], None], message: str
) -> None:
    source = make([record(n) for n in range(4)])
    break_image(tmp_path / "images" / "2.png")
    with pytest.raises(UserError) as refused:
        source.samples()
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / 'data.json'}: record 0002: ")
    assert "2.png" in text
    assert message in text
    assert "\n" not in text


def test_several_bad_images_are_counted(make: Make, tmp_path: Path) -> None:
    source = make([record(n) for n in range(4)])
    for number in (1, 3):
        (tmp_path / f"images/{number}.png").unlink()
    with pytest.raises(UserError, match=r"\(2 images of 4 are bad\)"):
        source.samples()


def test_images_of_samples_that_are_not_chosen_are_not_opened(make: Make, tmp_path: Path) -> None:
    records = [record(n) for n in range(10)]
    chosen = {s.id for s in make(records, size=3).samples()}
    for number in range(10):
        if f"{number:04d}" not in chosen:
            (tmp_path / f"images/{number}.png").unlink()
    again = LlavaJson(str(tmp_path / "data.json"), str(tmp_path / "images"), size=3)
    assert {s.id for s in again.samples()} == chosen


def test_an_opened_image_is_opened_again_only_when_it_changed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsft_exp.source import checking

    make([record(n) for n in range(3)]).samples()
    opened: list[str] = []
    real = checking.open_image
    monkeypatch.setattr(checking, "open_image", lambda path, exif: opened.append(path) or real(path, exif))

    def read() -> list[str]:
        opened.clear()
        LlavaJson(str(tmp_path / "data.json"), str(tmp_path / "images")).samples()
        return [Path(path).name for path in opened]

    assert read() == []
    Image.new("RGB", (9, 9)).save(tmp_path / "images/1.png")
    assert read() == ["1.png"]
    (tmp_path / "images/2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"record 0002"):
        read()
