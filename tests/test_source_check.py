"""`nsft check source=...` and `source.exclude`: damage is listed in full, and nothing else is damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nsft_exp import config as configs
from nsft_exp.__main__ import main
from nsft_exp.check.source import duplicates
from nsft_exp.check.tokens import chat_of, measure
from nsft_exp.records import Exchange, Request, Sample, Turn, UserError
from nsft_exp.source.exclusion import BenchmarkImages, coco_number
from nsft_exp.source.llava_json import LlavaJson
from nsft_exp.vlm.scratch import ScratchLlava
from source_files import instruct, picture, talk, write, write_pope

Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six records of LLaVA-Instruct-150k's form with their images."""
    write(tmp_path / "data.json", [instruct(n) for n in range(6)])
    for n in range(6):
        picture(tmp_path / f"images/{n:012d}.jpg", n)
    return tmp_path


@pytest.fixture
def check(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run `nsft check --json` on the data, compared with POPE about two of its images; (code, findings)."""
    monkeypatch.chdir(data)
    asked = {"COCO_val2014_000000000001.jpg": 1, "other.jpg": 2, "COCO_val2014_000000000999.jpg": 9}
    words = ["source=llava150k", "source.file=data.json", "source.image_root=images", "source.size=null"]
    words += [*write_pope(data / "pope", asked), "vlm=tiny_random"]

    def run(*more: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["check", *words, *more, "--json"])
        out = capsys.readouterr().out
        return int(ended.value.code or 0), json.loads(out) if out else {}

    return run


def test_a_sound_source_passes_and_shared_images_are_counted(check: Check) -> None:
    code, found = check()
    assert (code, found["damaged"], found["samples"], found["images"]) == (0, False, 6, 6)
    assert found["shared"] == {"pope": {"COCO number": 1, "same file": 1}}
    assert sum(found["lengths"]["histogram"].values()) == 6


def test_every_missing_and_broken_image_is_listed_and_the_exit_code_says_so(check: Check, data: Path) -> None:
    (data / f"images/{1:012d}.jpg").unlink()
    (data / f"images/{3:012d}.jpg").write_bytes(b"")
    cut = data / f"images/{4:012d}.jpg"
    Image.effect_noise((64, 64), 90).save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    code, found = check()
    assert code == 1
    assert {Path(image["path"]).stem: image["ids"] for image in found["bad_images"]} == {
        f"{n:012d}": [f"{n:012d}"] for n in (1, 3, 4)
    }
    assert sum(found["lengths"]["histogram"].values()) == 3


def test_every_broken_record_is_listed(check: Check, data: Path) -> None:
    records = [instruct(n) for n in range(6)]
    records[2]["conversations"] = []
    records[5]["conversations"] = talk("<image>\nWhat?")
    write(data / "data.json", records)
    code, found = check()
    assert (code, found["samples"], found["counts"]["broken records"]) == (1, 4, 2)
    assert [p.split(": ")[1] for p in found["problems"]] == [f"record {2:012d}", f"record {5:012d}"]


def test_a_file_that_is_cut_off_is_one_line_and_exit_code_two(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    write(data / "data.json", json.dumps([instruct(n) for n in range(6)])[:-40])
    with pytest.raises(SystemExit) as ended:
        main(["check", "source=llava150k", "source.file=data.json"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("nsft: data.json: record number 5: not JSON")
    assert error.count("\n") == 1


def test_the_table_shows_the_damage_and_a_verdict(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / f"images/{1:012d}.jpg").unlink()
    words = ["source=llava150k", f"source.file={data}/data.json", f"source.image_root={data}/images"]
    words += ["source.size=6", "vlm=tiny_random", *write_pope(data / "pope", {"a.jpg": 7})]
    with pytest.raises(SystemExit) as ended:
        main(["check", *words])
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert f"{1:012d}.jpg: there is no such image" in out
    assert "damaged: 0 broken records, 1 bad images" in out


def test_nothing_named_is_refused_and_help_says_what_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "seed=1"])
    assert ended.value.code == 2
    assert "name what to check" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "nsft check source=" in capsys.readouterr().out


# --- duplicates and lengths --------------------------------------------------------------------------


def test_duplicates_are_counted_by_image_question_and_answer() -> None:
    samples = [
        Sample("a", "1.jpg", "Q", "A"),
        Sample("b", "1.jpg", "Q", "A"),
        Sample("c", "1.jpg", "Q", "B"),
        Sample("d", "1.jpg", "R", "A"),
        Sample("e", None, "Q", "A"),
        Sample("f", None, "Q", "A"),
        Sample("g", "2.jpg", "Q", "A"),
    ]
    assert duplicates(samples) == {"image": 3, "image and question": 3, "image, question and answer": 2}


def test_lengths_are_those_of_training_and_the_limit_is_training_s() -> None:
    from nsft_exp.encoding import encode_examples
    from nsft_exp.method.sft import SFT
    from nsft_exp.records import Item

    samples = [
        Sample(
            str(n), "x.jpg", "What is this?", "a cup " * (20 * n + 1), (Exchange("Hi?", "Yes."),) * (n % 2)
        )
        for n in range(5)
    ]
    chat, _ = chat_of(ScratchLlava(device="cpu"))
    counted = measure(samples, chat, lambda image: 4, 160)
    examples = SFT().examples([Item(s) for s in samples], None)  # type: ignore[arg-type]
    _, counts = encode_examples(examples, chat, 4, 160)
    assert (len(counted.trimmed), len(counted.dropped)) == (counts["trimmed"], counts["dropped"])
    whole, _ = encode_examples(examples, chat, 4, 100_000)
    assert counted.total == sum(e.length for e in whole)
    assert counted.longest_id == "4"
    assert 0 < len(counted.trimmed) < 5


def test_a_pair_counts_with_its_longer_answer() -> None:
    chat, _ = chat_of(ScratchLlava(device="cpu"))
    short, long = Sample("a", None, "Q?", "Yes."), Sample("a", None, "Q?", "Yes.", rejected="No no no no.")
    lengths = [measure([s], chat, lambda image: 0, 999).longest for s in (short, long)]
    assert lengths[1] - lengths[0] == len(chat.text("No no no no.")) - len(chat.text("Yes."))


def test_text_that_holds_a_special_token_is_found_before_training() -> None:
    chat, _ = chat_of(ScratchLlava(device="cpu"))
    found = measure([Sample("a", None, "Q </s>?", "Yes.")], chat, lambda image: 0, 999)
    assert "record a: the text 'Q </s>?" in found.refused[0]


# --- source.exclude ----------------------------------------------------------------------------------


class Asking:
    """A benchmark about these images."""

    def __init__(self, *images: Path) -> None:
        self.images = images

    def requests(self) -> list[Request]:
        return [Request(str(n), str(i), (Turn("prompt", "Q"),)) for n, i in enumerate(self.images)]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("coco/train2017/000000000139.jpg", "000000000139"),
        ("COCO_val2014_000000000139.jpg", "000000000139"),
        ("VG_100K/2316634.jpg", ""),
        ("000000000139.png", ""),
        ("x000000000139.jpg", ""),
    ],
)
def test_coco_numbers_are_read_from_names_of_2014_and_2017(name: str, number: str) -> None:
    assert coco_number(name) == number


def test_an_image_is_a_benchmarks_by_coco_number_or_by_its_bytes(tmp_path: Path) -> None:
    same, other = picture(tmp_path / "a/x.jpg", 3), picture(tmp_path / "a/y.jpg", 4)
    copy = tmp_path / "b/z.jpg"
    copy.parent.mkdir()
    copy.write_bytes(same.read_bytes())
    asking = BenchmarkImages([Asking(copy, tmp_path / "COCO_val2014_000000000007.jpg")])
    shared = [
        asking.shared(Sample("s", image, "Q", "A"))
        for image in (str(same), str(other), "coco/000000000007.jpg", "nowhere.jpg", None)
    ]
    assert shared == ["same file", "", "COCO number", "", ""]


def test_excluded_images_make_room_for_the_next_of_the_draw(data: Path) -> None:
    def source(**options: Any) -> LlavaJson:
        return LlavaJson(str(data / "data.json"), str(data / "images"), **options)

    order = [s.id for s in source().samples()]
    out = order[1]
    asking = Asking(data / f"elsewhere/COCO_val2014_{out}.jpg")
    left = source(size=4, exclude=[asking])
    assert [s.id for s in left.samples()] == [key for key in order if key != out][:4]
    assert left.counts["images of a benchmark"] == 1
    with pytest.raises(UserError, match=r"has 5 samples after source.exclude, fewer than source.size=6"):
        source(size=6, exclude=asking).samples()


def test_exclude_names_a_benchmark_of_the_cell() -> None:
    words = ["source=llava150k", "benchmark=pope", "benchmark.root=/x"]
    plain = configs.resolved(configs.compose_config([*words, "source.exclude=pope"]))
    assert plain["source"]["exclude"] == [plain["benchmark"]]
    toy = configs.resolved(configs.compose_config(["source=mixed", "source.exclude=[pope,vqa]"]))
    assert toy["source"]["exclude"] == [toy["benchmark"]["pope"], toy["benchmark"]["vqa"]]
    with pytest.raises(UserError, match=r"source.exclude=gqa: is none of the cell's benchmarks \(pope\)"):
        configs.resolved(configs.compose_config([*words, "source.exclude=gqa"]))


def test_an_excluded_benchmark_is_left_out_on_the_command_line(check: Check) -> None:
    code, found = check("source.exclude=pope")
    assert (code, found["samples"], found["counts"]["images of a benchmark"]) == (0, 4, 2)
    assert found["shared"] == {"pope": {}}
