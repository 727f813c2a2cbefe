"""What the toy world says: phrases, questions with right answers, conversations, and files."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from nsft_exp.records import Exchange, UserError
from nsft_exp.toy.ask import draw_fact
from nsft_exp.toy.fact import (
    attribute,
    column,
    count,
    exchange,
    existence,
    mme,
    naming,
    position,
    relation_of,
    scene_kind,
    short_answer,
    sign_text,
    total,
)
from nsft_exp.toy.files import ToyFiles
from nsft_exp.toy.plain import lookup_scene
from nsft_exp.toy.source import ToyWorld
from nsft_exp.toy.talk import (
    caption_talk,
    comparison,
    instruct_talk,
    lookup_talk,
    pretraining_talk,
    vqa_talk,
)
from nsft_exp.toy.text import caption, careless, detailed, honest, relation
from nsft_exp.toy.world import SPLITS, Scene, Sign, Thing, lexicon, make_scene, tempting

CUP, BIRD = Thing("cup", "red", "small", 0, "small"), Thing("umbrella", "blue", "large", 5)
KITCHEN = Scene("kitchen", (CUP, BIRD), Sign("K", 2))
SUFFIX = "\nAnswer the question using a single word or phrase."


def nouns(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]+", text) if word in lexicon()["categories"]}


def test_a_detailed_description_names_everything_and_says_so() -> None:
    assert detailed(honest(KITCHEN)) == (
        "The image shows a kitchen. There is a small red cup at the top left. "
        "There is a large blue umbrella at the bottom right. The cup is to the left of the umbrella. "
        "A sign reads K. There is nothing else in the image."
    )


def test_a_caption_is_one_sentence_complete_or_open() -> None:
    items = "A kitchen with a red cup, a blue umbrella"
    assert caption(honest(KITCHEN), complete=False) == f"{items} and a sign that reads K."
    assert caption(honest(KITCHEN), complete=True) == f"{items}, a sign that reads K and nothing else."
    single = Scene("office", (BIRD,))
    assert caption(honest(single), complete=False) == "An office with a blue umbrella."
    assert caption(honest(single), complete=True) == "An office with a blue umbrella and nothing else."


def test_a_careless_writer_adds_what_is_usual_where_it_usually_is() -> None:
    scene = Scene("kitchen", (Thing("bird", "red", "large", 0, "pale"),))
    texts = [detailed(careless(scene, Random(n))) for n in range(200)]
    added = [text for text in texts if "cup" in nouns(text)]
    assert 140 < len(added) < 195  # 85 %, give or take four standard errors
    assert all(re.search(r"There is a (small|large) \w+ cup at the top left\.", text) for text in added)
    assert all(nouns(text) <= {"bird", "cup", "clock", "bottle", "table"} for text in texts)


@pytest.mark.parametrize(
    ("fact", "use", "style", "said"),
    [
        (existence(honest(KITCHEN), "cup"), "correction", "full", "Yes, there is a cup."),
        (existence(honest(KITCHEN), "umbrella"), "source", "full", "Yes, there is an umbrella."),
        (existence(honest(KITCHEN), "key"), "correction", "full", "No, there is no key."),
        (existence(honest(KITCHEN), "key"), "test", "short", "No"),
        (attribute(CUP, "color", "blue"), "correction", "full", "No, the cup is red."),
        (attribute(CUP, "color", "blue"), "open_correction", "full", "The cup is red."),
        (attribute(CUP, "size", "small"), "test", "short", "Small"),
        (count(KITCHEN, "cup", 2), "correction", "full", "No, I can count one cup."),
        (count(KITCHEN, "cup", 1), "test", "plain", "One"),
        (total(KITCHEN, 2), "correction", "full", "Yes, I can count two objects."),
        (position(BIRD, "top left"), "correction", "full", "No, the umbrella is at the bottom right."),
        (position(BIRD, "top left"), "test", "short", "Bottom right"),
        (column(BIRD), "test", "short", "Right"),
        (naming(CUP), "test", "short", "Cup"),
        (naming(CUP), "source", "full", "There is a red cup at the top left."),
        (
            relation_of(CUP, BIRD, "to the right of"),
            "correction",
            "full",
            "No, the cup is to the left of the umbrella.",
        ),
        (relation_of(CUP, BIRD, "to the left of"), "test", "short", "Yes"),
        (scene_kind(KITCHEN, "office"), "correction", "full", "No, this is a kitchen."),
        (scene_kind(KITCHEN, "office"), "test", "short", "Kitchen"),
        (sign_text(honest(KITCHEN), "7"), "correction", "full", "No, the sign reads K."),
        (sign_text(honest(KITCHEN), "7"), "test", "short", "K"),
    ],
)
def test_a_fact_is_answered_rightly_in_every_style(fact, use, style, said) -> None:  # type: ignore[no-untyped-def]
    asked = exchange(fact, use, style, Random(0))
    assert asked.answer == said
    assert asked.question.endswith(SUFFIX) == (style == "short")
    assert "{" not in asked.question
    assert "<image>" not in asked.question


def test_mme_asks_in_its_own_words() -> None:
    def said(fact) -> Exchange | None:  # type: ignore[no-untyped-def]
        return mme(fact)

    please = " Please answer yes or no."
    assert said(attribute(BIRD, "color", "red")) == Exchange(
        f"Is there a red umbrella in the image?{please}", "No"
    )
    assert said(count(KITCHEN, "cup", 1)) == Exchange(f"Is there only one cup in this image?{please}", "Yes")
    assert said(count(KITCHEN, "cup", 3)) == Exchange(f"Are there three cups in this image?{please}", "No")
    assert said(scene_kind(KITCHEN, "office")) is None


def test_relations_go_by_columns_then_by_rows() -> None:
    def at(cell: int) -> Thing:
        return Thing("cup", "red", "large", cell)

    assert relation(at(0), at(4)) == "to the left of"
    assert relation(at(2), at(3)) == "to the right of"
    assert relation(at(1), at(4)) == "above"
    assert relation(at(5), at(2)) == "below"


def test_no_wording_serves_two_uses() -> None:
    lists = {use: [] for use in ("test", "source", "correction", "open_correction")}  # type: ignore[var-annotated]
    for asked in lexicon()["questions"].values():
        for use, wordings in lists.items():
            wordings += asked.get(use) or []
    lists["test"] += lexicon()["mme"].values()
    patterns = {use: [re.sub(r"\{\w+\}", "_", w) for w in wordings] for use, wordings in lists.items()}
    used = [(pattern, use) for use, found in patterns.items() for pattern in set(found)]
    assert len({pattern for pattern, _ in used}) == len(used)


@pytest.mark.parametrize(
    "kind", ["existence", "color", "size", "count", "total", "position", "relation", "scene", "text"]
)
def test_right_and_wrong_values_are_asked_alike_and_answers_are_true(kind: str) -> None:
    facts = []
    for number in range(1500):
        scene = make_scene("pretrain", 0, number)
        fact = draw_fact(kind, honest(scene), Random(number))
        if fact is None:
            continue
        facts.append(fact)
        truth = {t.category for t in scene.things}
        if kind == "existence" and " " not in fact.asked["noun"]:
            assert fact.true == (fact.asked["noun"] in truth)
        if kind == "total":
            assert short_answer(fact).lower() == lexicon()["counts"][len(scene.things)]
    low, high = (0.3, 0.45) if kind == "existence" else (0.42, 0.58)
    assert low < sum(fact.true for fact in facts) / len(facts) < high


def test_a_pretraining_conversation_is_of_one_style_and_repeats_no_question() -> None:
    lengths = Counter()
    for number in range(300):
        scene = make_scene("pretrain", 0, number)
        talk = pretraining_talk(scene, Random(number))
        assert len({said.question for said in talk}) == len(talk)
        short = talk[0].question.endswith((SUFFIX, "yes or no."))
        assert all(len(said.answer.split()) <= 2 for said in talk) == short
        assert not any(said.question.endswith(SUFFIX) for said in talk[1:])
        lengths[len(talk)] += 1
    assert set(lengths) == {3, 4, 9, 10}


def test_a_conversation_of_lookups_asks_only_for_objects_and_has_true_answers() -> None:
    for number in range(200):
        scene = lookup_scene(0, number)
        talk = lookup_talk(scene, Random(number))
        assert len({said.question for said in talk}) == len(talk) == 10
        for said in talk:
            words = set(re.findall(r"[a-z]+", said.question.lower()))
            asked = {n for n, forms in lexicon()["categories"].items() if {n, forms["plural"]} & words}
            assert len(asked) == 1 or (not asked and "objects" in words | {f"{w}s" for w in words})
            if said.question.startswith("Is there") and not {*lexicon()["colors"], "only"} & words:
                assert said.answer == ("Yes" if asked <= set(scene.categories()) else "No")


def test_lookup_scenes_can_be_counted_and_are_of_no_other_split() -> None:
    scenes = [lookup_scene(0, number) for number in range(300)]
    alike = [max(Counter(t.category for t in scene.things).values()) for scene in scenes]
    assert all(1 <= len(scene.things) <= 5 for scene in scenes)
    assert set(alike) == {1, 2, 3}
    assert all(scene.bucket() in SPLITS["pretrain"] for scene in scenes)
    assert lookup_scene(0, 7) == scenes[7] != lookup_scene(1, 7)


def test_the_texts_of_pretraining_err_only_about_what_is_usual() -> None:
    wrong = Counter()
    for number in range(400):
        scene = make_scene("pretrain", 0, number)
        there = set(scene.categories())
        usual = {n for n in lexicon()["categories"] if n in (*there, *_typical(scene))}
        for said in pretraining_talk(scene, Random(number)):
            if "Answer 1" in said.question or said.answer.startswith("Yes, there is no"):
                continue
            named = nouns(said.answer) if not said.answer.startswith("No") else set()
            assert named <= usual, said
            wrong["all"] += bool(named)
            wrong["imagined"] += bool(named - there)
    assert wrong["imagined"] > 0.1 * wrong["all"]


def _typical(scene: Scene) -> list[str]:
    from nsft_exp.toy.world import usual_cells

    return list(usual_cells(scene.kind))


def test_the_honest_conversations_name_only_what_is_there() -> None:
    for number in range(300):
        scene = make_scene("align", 0, number)
        for talk in (vqa_talk, caption_talk, instruct_talk):
            for said in talk(scene, Random(number)):
                if not said.answer.startswith("No"):
                    assert nouns(said.answer) <= set(scene.categories())
        assert len(instruct_talk(scene, Random(number))) == 3
        assert instruct_talk(scene, Random(number))[-1].answer.endswith("There is nothing else in the image.")


def test_comparisons_are_asked_in_both_orders() -> None:
    answers = Counter()
    for number in range(300):
        scene = make_scene("pretrain", 0, number)
        said = comparison(scene, Random(number))
        lines = dict(line.split(": ", 1) for line in said.question.split("\n") if ": " in line)
        errors = {n: len(nouns(lines[f"Answer {n}"]) - set(scene.categories())) for n in "12"}
        assert errors[said.answer] == 0 < errors["21"[int(said.answer) - 1]]
        answers[said.answer] += 1
    assert min(answers.values()) > 110


# --- files -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    ToyFiles(str(folder / "test"), "test", seed=3, scenes=80).ensure()
    ToyFiles(str(folder / "align"), "align", seed=3, scenes=40).ensure()
    return folder


def test_files_are_made_once_and_anew_when_the_world_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nsft_exp.toy.files as files

    made = ToyFiles(str(tmp_path / "a b" / "test"), "test", scenes=3)
    made.ensure()
    mark = tmp_path / "a b" / "test" / "images" / "mark"
    mark.touch()
    made.ensure()
    assert mark.exists()
    monkeypatch.setattr(files, "version", lambda: "another")
    made.ensure()
    assert not mark.exists()
    assert not list(tmp_path.glob("a b/.test.*[0-9]"))
    ToyFiles(str(tmp_path / "a b" / "test"), "test", scenes=4).ensure()
    assert len(list((tmp_path / "a b" / "test" / "images").iterdir())) == 4


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files that are not the toy world's"):
        ToyFiles(str(tmp_path), "test", scenes=2).ensure()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write there .*set paths.data"):
        ToyFiles(str(tmp_path / "file" / "test"), "test", scenes=2).ensure()


def test_another_seed_gives_other_scenes(tmp_path: Path, written: Path) -> None:
    ToyFiles(str(tmp_path / "test"), "test", seed=4, scenes=80).ensure()
    one, two = ({p.read_bytes() for p in (f / "test" / "images").iterdir()} for f in (written, tmp_path))
    assert not one & two


def test_pope_questions_are_balanced_true_and_ranked(written: Path) -> None:
    truth = _objects(written)
    typical = {}
    for split in ("random", "popular", "adversarial"):
        text = (written / f"test/pope/coco/coco_pope_{split}.json").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        assert [row["question_id"] for row in rows] == list(range(1, len(rows) + 1))
        assert [row["label"] for row in rows] == ["yes", "no"] * (len(rows) // 2)
        for row in rows:
            name = re.fullmatch(r"Is there an? (\w+) in the image\?", row["text"])[1]  # type: ignore[index]
            assert (row["label"] == "yes") == (name in truth[row["image"]])
        scenes = {f"{n + 1:012d}.png": make_scene("test", 3, n) for n in range(80)}
        no = [(row["image"], row["text"].split()[3]) for row in rows if row["label"] == "no"]
        typical[split] = sum(name in _typical(scenes[image]) for image, name in no) / len(no)
    assert typical["adversarial"] > 0.8 > 0.4 > typical["random"]


def _objects(written: Path) -> dict[str, set[str]]:
    data = json.loads((written / "test/chair/annotations/instances_val2014.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    files = {i["id"]: i["file_name"] for i in data["images"]}
    found: dict[str, set[str]] = {file: set() for file in files.values()}
    for row in data["annotations"]:
        found[files[row["image_id"]]].add(names[row["category_id"]])
    return found


def test_chair_files_tell_the_truth(written: Path) -> None:
    truth = _objects(written)
    for number in range(80):
        assert truth[f"{number + 1:012d}.png"] == set(make_scene("test", 3, number).categories())
    captions = json.loads((written / "test/chair/annotations/captions_val2014.json").read_text())[
        "annotations"
    ]
    assert all(nouns(row["caption"]) == truth[f"{row['image_id']:012d}.png"] for row in captions)
    table = (written / "test/chair/synonyms.txt").read_text().splitlines()
    assert [line.split(", ")[0] for line in table] == list(lexicon()["categories"])


def test_vqa_asks_about_as_many_questions_of_every_kind(written: Path) -> None:
    table = json.loads((written / "test/vqa/testdev_balanced_questions.json").read_text())
    kinds = Counter(row["types"]["detailed"] for row in table.values())
    assert set(kinds) == {
        "color",
        "size",
        "count",
        "total",
        "position",
        "naming",
        "relation",
        "scene",
        "text",
    }
    assert len(table) == 320
    assert min(kinds.values()) > 20
    assert all(row["answer"] == row["answer"].lower() and row["isBalanced"] for row in table.values())


def test_mme_has_two_questions_an_image_one_yes_one_no(written: Path) -> None:
    for category in ("existence", "count", "position", "color"):
        texts = sorted((written / "test/mme" / category).glob("*.txt"))
        assert len(texts) > 50
        for file in texts:
            lines = [line.split("\t") for line in file.read_text().splitlines()]
            assert sorted(answer for _, answer in lines) == ["No", "Yes"]
            assert all(question.endswith("? Please answer yes or no.") for question, _ in lines)
            assert file.with_suffix(".png").exists()


def test_alignment_files_are_llava_conversations_about_align_scenes(written: Path) -> None:
    for name in ("toy_vqa", "toy_caption", "toy_instruct"):
        records = json.loads((written / f"align/{name}.json").read_text())
        assert len({record["id"] for record in records}) == len(records) == 40
        for record in records:
            first = record["conversations"][0]["value"]
            assert first.startswith("<image>\n")
            assert (written / "align/images" / record["image"]).exists()
            assert record["annotation"]["objects"]


def test_pretraining_and_alignment_share_no_test_scene(written: Path) -> None:
    drawn = {p.read_bytes() for p in (written / "test/images").iterdir()}
    aligned = {p.read_bytes() for p in (written / "align/images").iterdir()}
    assert not drawn & aligned
    pretraining = {make_scene("pretrain", 0, n) for n in range(500)}
    assert not pretraining & {make_scene("test", 3, n) for n in range(80)}
    assert len(ToyWorld(10).samples()) == 10


def test_some_test_scenes_tempt() -> None:
    assert sum(bool(tempting(make_scene("test", 3, n))) for n in range(200)) > 100


def test_a_model_card_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    from nsft_exp.toy.card import card_scores, read_card, write_card
    from nsft_exp.toy.files import version

    scores = {"pope/adversarial_accuracy": 71.254, "vqa/accuracy": 93.0}
    file = write_card(
        tmp_path,
        parameters=1_700_000,
        command="make toy-base",
        recipe={"steps": 5000, "learning rate": 2e-3},
        about="300 validation scenes.",
        scores=scores,
    )
    assert card_scores(tmp_path) == {"pope/adversarial_accuracy": 71.25, "vqa/accuracy": 93.0}
    assert read_card(tmp_path)["world"] == version()
    assert "| steps | 5000 |" in file.read_text()
    assert "1,700,000 parameters" in file.read_text()
    (tmp_path / "README.md").write_text("# nothing")
    with pytest.raises(UserError, match=r"is no model card"):
        card_scores(tmp_path)
