"""What a report says of answers that fell apart, and of the words of corrective dialogues."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nsft_exp.records import Correction, Exchange, ItemScore, to_json
from nsft_exp.report import dialogue_words, form
from nsft_exp.report.analysis import make_results
from nsft_exp.report.bar import draw_words
from nsft_exp.report.cell import Cell, Row, read_jsonl
from nsft_exp.report.figure import draw_all
from nsft_exp.report.style import Style, drawing
from synthetic_study import make_study, without_codebook, write_jsonl

Study = tuple[list[Cell], dict[str, Any]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"), seeds=(0, 1), num_images=12)


# --- the form of answers ---------------------------------------------------------------------------


def row(answer: str, finish: str = "stop", unparseable: bool = False, scored: bool = True) -> Row:
    score = ItemScore("q", "i", {"n": 1.0}, unparseable=unparseable) if scored else None
    return Row("q", "?", answer, finish, score)


def test_shares_are_of_the_questions_that_have_an_answer() -> None:
    rows = [
        row("a"),
        row("a", "length", True),
        row("b b", unparseable=True),
        row("c", scored=False),
        row("", ""),
    ]
    assert form.shares(rows) == {"unparseable": 50.0, "cut": 25.0, "same": 50.0}
    assert form.shares([row("", "", scored=False)]) == {}


def collapsed(cells: list[Cell], folder: Path, label: str) -> list[Cell]:
    """The cells, those of a label with every short answer cut in the middle of a babble."""
    found = []
    for cell in cells:
        if cell.label == label:
            old = next(e for e in cell.evaluations if e.name == "vqa")
            rows = list(read_jsonl(old.folder / "records.jsonl"))
            for line in rows:
                line |= {"answer": "the the the the the the", "finish": "length"}
                line["score"] |= {"unparseable": True, "counts": {"n": 1.0, "right": 0.0}}
            write_jsonl(folder / cell.name / "records.jsonl", rows)
            new = dataclasses.replace(old, folder=folder / cell.name, metrics={"accuracy": 0.0})
            kept = tuple(new if e is old else e for e in cell.evaluations)
            cell = dataclasses.replace(cell, evaluations=kept)
        found.append(cell)
    return found


def test_a_collapse_is_named_and_keeps_its_scores(study: Study, tmp_path: Path) -> None:
    found = make_results(collapsed(study[0], tmp_path, "gt_dpo"), study[1], replicates=20)
    said = "answers 100 % not in the asked form (base: 0 %), 100 % cut at the token limit (base: 0 %)"
    assert f"gt_dpo, vqa: {said}" in found.notes
    mean = next(a for a in found.arms if a.label == "gt_dpo").mean("vqa/accuracy")
    assert mean is not None
    assert mean.value == 0.0
    assert "| gt_dpo | 0.0 | 0.0 |" in form.to_markdown(found)
    assert "| 100.0 | 100.0 | 100.0 |" in form.to_markdown(found)


def test_answers_as_asked_give_no_note(study: Study) -> None:
    found = make_results(*study, replicates=20)
    assert not any("answers" in note for note in found.notes)
    grid = form.form_grid(found)
    assert [name for name, _ in grid.groups] == ["pope", "chair", "vqa"]
    assert [r[0] for r in grid.rows] == [a.label for a in found.arms]


# --- the words of dialogues ------------------------------------------------------------------------


def test_words_are_compared_only_where_some_dialogues_had_no_codebook(study: Study, tmp_path: Path) -> None:
    assert dialogue_words.with_and_without(study[0]) == []
    both = dialogue_words.with_and_without([*study[0], *without_codebook(tmp_path, study[0])])
    assert [w.codebook for w in both] == ["full", "none"]


def test_the_share_of_objects_is_of_all_words(study: Study, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    dialogue = (Exchange("Is there a cup?", "No, there is no cup but a dog."), Exchange("Why?", "It is so."))
    write_jsonl(tmp_path / "full" / "records.jsonl", [to_json(Correction("s0", "ok", (), dialogue))])
    cells = [
        dataclasses.replace(c, critique_folder=tmp_path / "full") if c.label == "nsft" else c
        for c in study[0]
    ]
    full, none = dialogue_words.with_and_without([*cells, *without_codebook(tmp_path, study[0])])
    assert (full.num_dialogues, full.words.total(), full.object_words) == (
        1,
        4 + 8 + 1 + 3,
        {"cup": 2, "dog": 1},
    )
    assert full.object_share == pytest.approx(100 * 3 / 16)
    assert full.ranked(2) == [("cup", pytest.approx(100 * 2 / 16)), ("but", pytest.approx(100 / 16))]
    assert none.object_share == 0.0
    assert [word for word, _ in none.ranked(2)] == ["provide", "word"]


def test_the_words_are_drawn_and_tabled_or_said_to_be_lacking(study: Study, tmp_path: Path) -> None:
    more = [*study[0], *without_codebook(tmp_path, study[0])]
    with_words = make_results(more, study[1], replicates=0)
    with drawing():
        for narrow in (True, False):
            figure = draw_words(with_words, Style(narrow))
            assert figure is not None
            assert [axis.get_title(loc="left") for axis in figure.axes][1].startswith("codebook none: 0.0 %")
    dialogues = sum(bool(c.dialogue) for c in more[-1].corrections().values())
    assert f"| none | {dialogues} | {13 * dialogues} | 0 |" in dialogue_words.to_markdown(with_words)
    plain = make_results(*study, replicates=0)
    assert dialogue_words.to_markdown(plain) == ""
    assert "words" in [plot.name for plot in draw_all(plain)[1]]


def test_without_a_table_of_objects_nothing_is_said_of_them(study: Study, tmp_path: Path) -> None:
    more = [*study[0], *without_codebook(tmp_path, study[0])]
    bare = [
        dataclasses.replace(c, evaluations=tuple(e for e in c.evaluations if e.name != "chair")) for c in more
    ]
    assert dialogue_words.with_and_without(bare) == []
