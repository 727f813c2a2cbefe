"""CSR: bound beams, trees of sentences, their values by hand, scorers against other computations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import DEBUG, POPE_ONLY, run_nsft
from nsft_exp import config as configs
from nsft_exp.pairing.scorer import Clip, Yes
from nsft_exp.pairing.sentence_tree import Node, SentenceTree, is_junk, path_value, pruned, ranks
from nsft_exp.records import Decoding, Reply, Request, Sample, Turn, UserError
from nsft_exp.toy.card import card_scores
from nsft_exp.toy.draw import draw_scene
from nsft_exp.toy.two_tower import accuracy, held_out
from nsft_exp.toy_scorer import SCORER
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.scratch import ScratchLlava

LEXICON = str(Path(configs.__file__).parent / "toy" / "lexicon.yaml")
SAMPLE = Sample("a", "a.png", "What?", "Truth.")


# --- beams that look at one another's tokens -------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> LoadedHF:
    return ScratchLlava(device="cpu", seed=3).load()


def ask(loaded: LoadedHF, text: str = "What is there?", **options: Any) -> list[Reply]:
    decoding = Decoding(6, **{k: options.pop(k) for k in ("diversity", "one_sentence") if k in options})
    request = Request(text, None, (Turn("prompt", text),), decoding=decoding, **options)
    ((_, replies),) = loaded.generate([request])
    return list(replies)


def test_greedy_answers_take_from_one_anothers_tokens_at_the_same_step(loaded: LoadedHF) -> None:
    penalty, prompt = 0.7, loaded.chat.prompt((Turn("prompt", "What is there?"),), None, "")
    rows: list[list[int]] = [[], [], []]
    for step in range(6):  # without a cache, one row after another
        taken: list[int] = []
        for row in rows:
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([[*prompt, *row]])).logits[0, -1]
            for token in taken:
                logits[token] -= penalty
            if len(row) == step and not (row and row[-1] in loaded.stops):
                row.append(int(logits.argmax()))
                taken.append(row[-1])
    assert [list(r.ids) for r in ask(loaded, n=3, diversity=penalty)] == rows
    assert len({tuple(row) for row in rows}) > 1
    assert len({r.ids for r in ask(loaded, n=3)}) == 1  # without it all greedy answers are the same


def test_bound_answers_stay_in_one_batch(loaded: LoadedHF) -> None:
    alone = [r.ids for r in ask(loaded, n=5, diversity=3.0)]
    decoding = Decoding(6, diversity=3.0)
    requests = [Request(t, None, (Turn("prompt", t),), n=5, decoding=decoding) for t in "xyz"]
    loaded.batch_size = 2
    try:
        assert [r.ids for r in ask(loaded, n=5, diversity=3.0)] == alone
        differ = {key for key, replies in loaded.generate(requests) if len({r.ids for r in replies}) > 1}
        assert differ == set("xyz")
    finally:
        loaded.batch_size = 32


def test_an_answer_of_one_sentence_ends_with_its_full_stop(loaded: LoadedHF) -> None:
    texts = {t: loaded.tokenizer.decode([t]) for t in range(len(loaded.tokenizer))}
    assert loaded.sentence_ends == {t for t, text in texts.items() if text.strip()[-1:] == "."}
    whole = ask(loaded)[0]
    second = whole.ids[1]
    loaded.__dict__["sentence_ends"] = frozenset({second})
    try:
        (cut,) = ask(loaded, one_sentence=True)
    finally:
        del loaded.__dict__["sentence_ends"]
    assert cut.ids == whole.ids[: whole.ids.index(second) + 1]
    assert (cut.finish, ask(loaded, one_sentence=False)[0].finish) == ("sentence", whole.finish)


# --- the tree --------------------------------------------------------------------------------------


class Telling:
    """A VLM whose continuations of each path are written down: (sentence, mean log p, finish)."""

    def __init__(self, story: dict[str, list[tuple[str, float, str]]]) -> None:
        self.story = story
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        for request in requests:
            self.asked.append(request)
            said = self.story.get(request.answer_prefix, [("", 0.0, "stop")])
            yield (
                request.id,
                tuple(
                    Reply(f"{request.answer_prefix} {s}".strip(), (1,), (logp,), finish)
                    for s, logp, finish in said
                ),
            )


class ByWord:
    """A scorer that knows each sentence's score."""

    def __init__(self, known: dict[str, float]) -> None:
        self.known = known

    def scores(self, texts: Any, vlm: Any) -> list[float]:
        return [self.known[text] for _, text in texts]


def test_values_are_rank_mixed_and_averaged_over_the_path() -> None:
    story = {
        "": [("One.", -0.1, "sentence"), ("Two.", -0.2, "sentence")],
        "One.": [("Red.", -0.5, "stop"), ("Blue.", -0.3, "stop")],
    }
    scorer = ByWord({"One.": 1.0, "Two.": 2.0, "Red.": 5.0, "Blue.": 4.0})
    (pair,) = SentenceTree(scorer, beams=2).pairs([SAMPLE], Telling(story))
    # one: 0.9 * 2/2 + 0.1 * 1/2 = 0.95, two: 0.9 * 1/2 + 0.1 * 2/2 = 0.55,
    # red: 0.9 * 1/2 + 0.1 * 2/2 = 0.55, blue: 0.9 * 2/2 + 0.1 * 1/2 = 0.95; the root counts in the mean
    assert (pair.chosen, pair.rejected) == ("Two.", "One. Blue.")
    assert pair.details == {"paths": 3, "values": [round(0.55 / 2, 6), round(1.9 / 3, 6)]}


def test_a_level_of_five_or_more_keeps_the_likeliest_and_the_two_unlikeliest() -> None:
    nodes = [Node(str(n), likelihood=-float(n)) for n in range(5)]
    assert [n.path for n in pruned(nodes)] == ["0", "3", "4"]
    assert pruned(nodes[:4]) == nodes[:4]
    story = {"": [(f"Sentence {n}.", -float(n), "sentence") for n in range(5)]}
    vlm = Telling(story)
    scorer = ByWord({f"Sentence {n}.": float(n) for n in range(5)})
    (pair,) = SentenceTree(scorer).pairs([SAMPLE], vlm)
    assert [r.answer_prefix for r in vlm.asked] == ["", "Sentence 0.", "Sentence 3.", "Sentence 4."]
    assert pair.details["paths"] == 3
    assert (pair.chosen, pair.rejected) == ("Sentence 4.", "Sentence 0.")  # ranks 1 and 5 of 5 by the scorer


def test_a_path_ends_where_it_is_too_long_and_samples_grow_apart() -> None:
    story = {"": [("Long and long.", -1.0, "sentence"), ("Short.", -2.0, "sentence")]}
    samples = [SAMPLE, replace(SAMPLE, id="b"), replace(SAMPLE, id="t", image=None)]
    scorer = ByWord({"Long and long.": 0.0, "Short.": 1.0})
    vlm = Telling(story)
    tree = SentenceTree(scorer, beams=2, max_characters=10)
    pairs = {p.id: p for p in tree.pairs(samples, vlm)}
    assert [r.answer_prefix for r in vlm.asked] == ["", "", "Short.", "Short."]
    assert {k: p.status for k, p in pairs.items()} == {"a": "ok", "b": "ok", "t": "no_image"}


def test_one_path_is_no_pair() -> None:
    story = {"": [("Same.", -1.0, "stop"), ("Same.", -1.0, "stop")]}
    (pair,) = SentenceTree(ByWord({"Same.": 1.0}), beams=2).pairs([SAMPLE], Telling(story))
    assert (pair.status, pair.chosen) == ("one_path", "Same.")


def test_ranks_and_means() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [1, 4, 1, 3]
    root = Node()
    leaf = Node("a b", value=0.2, parent=Node("a", value=0.7, parent=root))
    assert path_value(leaf) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("sentence", "junk"),
    [
        ("A cup.", False),
        ("No.", True),
        ("Это чашка.", True),
        ("A cup 😀 here.", True),
        ("red red red red red red", True),
        ("red red red red red.", False),
        ("a\nb\nc\nd\ne\nf\ng", True),
        ("A café, naïve.", False),
        ("It costs 5 € — “cheap”.", False),
    ],
)
def test_junk_is_left_out(sentence: str, junk: bool) -> None:
    assert is_junk(sentence) == junk


@pytest.mark.parametrize("options", [{"beams": 1}, {"diversity": 0.0}, {"weight": 2.0}])
def test_settings_that_grow_no_tree_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="pairing"):
        SentenceTree(ByWord({}), **options)


# --- scorers ---------------------------------------------------------------------------------------


def test_clip_scores_are_those_of_transformers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 8, "max_position_embeddings": 6, "bos_token_id": 1, "eos_token_id": 2}
    vision = sizes | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(tmp_path / "clip")
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "red": 4, "cup": 5, "dog": 6}
    raw = Tokenizer(models.WordLevel(words, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path / "clip")
    pictures = [Image.radial_gradient("L").resize((50, 40)).convert("RGB"), Image.new("RGB", (40, 60), "red")]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    texts = ["red cup", "dog", "a red dog and a red cup and a dog"]  # the last one is cut
    asked = [(replace(SAMPLE, image=str(tmp_path / f"{n}.png")), t) for n in range(2) for t in texts]
    found = Clip(str(tmp_path / "clip"), device="cpu", batch_size=4).scores(asked, None)

    size = {"shortest_edge": 32}
    processor = CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32})
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    ids = tokenizer(texts, padding=True, truncation=True, max_length=6, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=ids.input_ids, attention_mask=ids.attention_mask, pixel_values=pixels)
    expected = (out.logits_per_image / model.logit_scale.exp()).flatten().tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_folder_without_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pairing\.scorer\.path"):
        Clip(str(tmp_path)).scores([(SAMPLE, "x")], None)


class Agreeing:
    """A VLM whose log-odds of Yes are the length of the object that it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, tuple[Reply, ...]]]:
        for request in requests:
            self.asked.append(request.turns[0].text)
            assert request.candidates == ("Yes", "No")
            yield request.id, (Reply("", candidate_logps=(float(len(request.turns[0].text)), 0.0)),)


def test_the_vlm_is_asked_for_each_object_of_a_sentence_once() -> None:
    vlm = Agreeing()
    texts = ["There is a large red cup at the top left.", "An umbrella and a red cup.", "A sign reads K."]
    found = Yes(LEXICON).scores([(SAMPLE, t) for t in texts], vlm)
    cup, umbrella = vlm.asked
    assert cup.startswith("Is there a red cup in the image?")
    assert umbrella.startswith("Is there an umbrella in the image?")
    assert found == [len(cup), (len(cup) + len(umbrella)) / 2, 0.0]


def test_without_a_lexicon_the_sentence_itself_is_asked_for() -> None:
    vlm = Agreeing()
    Yes().scores([(SAMPLE, "A man rides a bike.")], vlm)
    assert vlm.asked == ['Does this image show the following? "A man rides a bike." Answer yes or no.']


def test_the_toy_scorer_has_the_scores_of_its_card() -> None:
    cases = held_out()
    clip = Clip(str(SCORER), device="cpu")
    model, tokenizer = clip._load()
    assert accuracy(model, tokenizer, cases) == pytest.approx(card_scores(SCORER), abs=2)
    assert (SCORER / "model.safetensors").stat().st_size < 3_000_000


def test_the_toy_scorer_ranks_in_use_as_in_training(tmp_path: Path) -> None:
    cases = [case for case in held_out(40) if case[0] == "object"]
    asked = []
    for number, (_, scene, texts) in enumerate(cases):
        draw_scene(scene).save(tmp_path / f"{number}.png")
        asked += [(replace(SAMPLE, image=str(tmp_path / f"{number}.png")), text) for text in texts]
    clip = Clip(str(SCORER), device="cpu")
    found = clip.scores(asked, None)
    right = [true > false for true, false in zip(found[::2], found[1::2], strict=True)]
    expected = accuracy(*clip._load(), cases)["object"]
    assert 100 * sum(right) / len(right) == pytest.approx(expected)


def test_a_false_sentence_differs_from_the_true_one_by_one_error() -> None:
    for kind, scene, (true, false) in held_out(40):
        changed = [(a, b) for a, b in zip(true.split(), false.split(), strict=True) if a != b]
        assert 1 <= len(changed) <= 2, (kind, scene)  # a place has two words, an article may follow


# --- a whole cell ----------------------------------------------------------------------------------


def test_csr_runs_end_to_end_on_a_random_model(tmp_path: Path, toy_data: Path) -> None:
    small = ("pairing.sentence_tokens=5", "pairing.max_characters=12", "pairing.beams=3")
    words = ("method=csr", "pairing=sentence_tree_yes", "rounds=2", *DEBUG, *POPE_ONLY, "limit=1", *small)
    assert run_nsft(tmp_path, toy_data, *words) == 0
    manifests = [json.loads(f.read_text("utf-8")) for f in (tmp_path / "runs/train").glob("*/manifest.json")]
    assert [m["models_held"] for m in manifests] == [1, 1]
    assert all(m["counts"]["pairs"] > 0 for m in manifests)
