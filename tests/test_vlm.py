"""Answers do not depend on the batch, equal Hugging Face's, and what is written loads elsewhere unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from nsft_exp.records import Decoding, Reply, Request, Turn, UserError
from nsft_exp.store import replace_folder
from nsft_exp.vlm.cache import growing_cache
from nsft_exp.vlm.hf import HFModel
from nsft_exp.vlm.loaded import LoadedHF
from nsft_exp.vlm.sampling import top_p_filtered
from nsft_exp.vlm.scratch import ScratchLlava
from nsft_exp.vlm.tokenizer import load_tokenizer, train_llama_tokenizer
from tiny_training import draw


@pytest.fixture(scope="module")
def loaded() -> LoadedHF:
    """A random model whose answers are not all alike: its head is sharpened."""
    torch.set_num_threads(1)
    model = ScratchLlava(device="cpu").load()
    model.model.lm_head.weight.data *= 6
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return draw(tmp_path_factory.mktemp("images"), 6)


def ask(number: int, image: str | None, **changes: Any) -> Request:
    decoding = Decoding(**{"max_new_tokens": 8 + number, **changes.pop("decoding", {})})
    return Request(
        f"r{number}",
        image,
        (Turn("prompt", "Is there a " + "cat " * number + "?"),),
        decoding=decoding,
        **changes,
    )


def answers(loaded: LoadedHF, requests: list[Request], batch_size: int) -> dict[str, tuple[Reply, ...]]:
    before, loaded.batch_size = loaded.batch_size, batch_size
    try:
        return dict(loaded.generate(requests))
    finally:
        loaded.batch_size = before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batched_answer_equals_the_unbatched_one(
    loaded: LoadedHF, images: list[str], temperature: float
) -> None:
    requests = [
        ask(n, images[n] if n % 4 else None, n=1 + n % 2, candidates=("Yes", "No, there is") if n % 3 else (),
            decoding={"temperature": temperature, "top_p": 0.9})
        for n in range(6)
    ]  # fmt: skip
    alone, together = answers(loaded, requests, 1), answers(loaded, requests[::-1], 5)
    assert alone.keys() == together.keys() == {r.id for r in requests}
    for request in requests:
        assert len(alone[request.id]) == request.n
        for one, other in zip(alone[request.id], together[request.id], strict=True):
            assert (one.ids, one.text, one.finish) == (other.ids, other.text, other.finish)
            assert one.logps == pytest.approx(other.logps, abs=1e-4)
            if request.candidates and one is alone[request.id][0]:
                assert one.candidate_logps == pytest.approx(other.candidate_logps, abs=1e-3)


def test_questions_about_one_image_share_its_prompt_and_are_answered_as_alone(
    loaded: LoadedHF, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask(n, images[n % 2], candidates=("Yes", "No, it is")) for n in range(8)]
    alone = answers(loaded, requests, 1)
    encoded: list[int] = []
    features = loaded.features
    monkeypatch.setattr(loaded, "features", lambda pixels: (encoded.append(len(pixels)), features(pixels))[1])
    together = answers(loaded, requests, 8)
    assert encoded == [2]
    for name in alone:
        (one,), (other,) = alone[name], together[name]
        assert one.ids == other.ids
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
        assert one.candidate_logps == pytest.approx(other.candidate_logps, abs=1e-3)


def test_a_greedy_answer_and_candidate_scores_equal_hugging_faces(
    loaded: LoadedHF, images: list[str]
) -> None:
    request = ask(4, images[1], candidates=("Yes", "A red box"))
    (reply,) = answers(loaded, [request], 4)["r4"]
    prompt = torch.tensor([loaded.chat.prompt(request.turns, loaded.num_image_tokens)])
    pixels = loaded.pixels(images[1])[None]
    theirs = loaded.model.generate(
        input_ids=prompt, pixel_values=pixels, attention_mask=torch.ones_like(prompt),
        max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=loaded.pad_id,
    )  # fmt: skip
    assert list(reply.ids) == theirs[0, prompt.shape[1] :].tolist()
    assert reply.candidate_logps is not None
    for text, score in zip(request.candidates, reply.candidate_logps, strict=True):
        answer = torch.tensor([[*loaded.tokenizer(text, add_special_tokens=False)["input_ids"], 2]])
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.cat([prompt, answer], 1), pixel_values=pixels).logits
        logps = logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1).gather(1, answer[0][:, None])
        assert score == pytest.approx(float(logps.sum()), abs=1e-3)


def test_the_cache_holds_what_transformers_holds_and_a_token_moves_nothing() -> None:
    torch.manual_seed(0)
    ours, theirs = growing_cache(), DynamicCache()
    batch = 3
    for new in (5, 1, 1, 70, 1):  # 70: more than there is room for
        moved = [torch.tensor([1, 0, 1]), torch.tensor([2])] if new == 70 else []
        for rows in moved:
            ours.batch_select_indices(rows)
            theirs.batch_select_indices(rows)
            batch = len(rows)
        for layer in range(2):
            keys, values = torch.randn(2, batch, 2, new, 4)
            place = ours.layers[layer].keys.data_ptr() if len(ours.layers) > layer else 0
            found, expected = (cache.update(keys, values, layer) for cache in (ours, theirs))
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
            assert new > 1 or place == found[0].data_ptr()
    assert ours.get_seq_length() == theirs.get_seq_length() == 78


def test_the_image_is_seen(loaded: LoadedHF, images: list[str]) -> None:
    found = answers(loaded, [ask(2, image, candidates=("Yes",)) for image in images[:1]], 2)["r2"][0]
    other = answers(loaded, [ask(2, images[3], candidates=("Yes",))], 2)["r2"][0]
    assert found.candidate_logps != pytest.approx(other.candidate_logps, abs=1e-3)


def test_sampled_answers_differ_by_number_and_seed_and_repeat(loaded: LoadedHF) -> None:
    hot = {"temperature": 1.5, "seed": 3}
    first = answers(loaded, [ask(3, None, n=3, decoding=hot)], 8)["r3"]
    assert len({reply.ids for reply in first}) == 3
    again = answers(loaded, [ask(3, None, n=1, decoding=hot)], 1)["r3"]
    assert again[0].ids == first[0].ids
    other = answers(loaded, [ask(3, None, n=1, decoding={**hot, "seed": 4})], 1)["r3"]
    assert other[0].ids != first[0].ids


def test_sampling_draws_from_the_models_distribution(loaded: LoadedHF) -> None:
    """The first token of 600 answers against its probabilities (chi-squared over the ten likeliest)."""
    request = ask(1, None, n=600, decoding={"temperature": 1.0, "max_new_tokens": 1})
    drawn = [reply.ids[0] for reply in answers(loaded, [request], 200)["r1"]]
    prompt = torch.tensor([loaded.chat.prompt(request.turns)])
    with torch.no_grad():
        probabilities = loaded.model(input_ids=prompt).logits[0, -1].softmax(-1)
    top = probabilities.topk(10)
    expected = [*(600 * top.values).tolist(), 600 * float(1 - top.values.sum())]
    counts = [drawn.count(token) for token in top.indices.tolist()]
    counts.append(600 - sum(counts))
    chi = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True) if e > 1)
    assert chi < 30  # the 0.999 quantile of 10 degrees of freedom is 29.6


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    assert (top_p_filtered(logits, 0.5) > -torch.inf).tolist() == [False, True, False, False]
    assert (top_p_filtered(logits, 0.6) > -torch.inf).tolist() == [False, True, False, True]
    assert (top_p_filtered(logits, 0.0001) > -torch.inf).sum() == 1
    assert torch.equal(top_p_filtered(logits, 1.0), logits)


def test_an_answer_stops_at_its_end_token_or_at_the_limit(loaded: LoadedHF) -> None:
    end = loaded.chat.end
    weight = loaded.model.lm_head.weight.data
    before = weight.clone()
    try:
        request = ask(2, None)
        state = loaded.hidden(torch.tensor([loaded.chat.prompt(request.turns)]))[0, -1]
        weight[end] = 100 * state / state.norm()
        (reply,) = answers(loaded, [request], 1)["r2"]
        assert (reply.finish, reply.text, reply.ids) == ("stop", "", (end,))
    finally:
        weight.copy_(before)
    (reply,) = answers(loaded, [ask(2, None, decoding={"max_new_tokens": 3})], 1)["r2"]
    assert (reply.finish, len(reply.ids)) == ("length", 3)


def test_beams_find_an_answer_at_least_as_likely_a_token_as_the_greedy_one(
    loaded: LoadedHF, images: list[str]
) -> None:
    def mean_logp(request: Request, reply: Reply) -> float:
        ids = [*loaded.chat.prompt(request.turns, loaded.num_image_tokens), *reply.ids]
        with torch.no_grad():
            logits = loaded.model(
                input_ids=torch.tensor([ids]), pixel_values=loaded.pixels(images[2])[None]
            ).logits[0, -len(reply.ids) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(reply.ids)[:, None]).mean())

    requests = [ask(2, images[2], decoding={"num_beams": beams, "max_new_tokens": 12}) for beams in (1, 8)]
    (greedy,), (best,) = (answers(loaded, [request], 1)["r2"] for request in requests)
    assert best.ids != greedy.ids
    assert mean_logp(requests[1], best) > mean_logp(requests[0], greedy)
    assert best.text == loaded.tokenizer.decode(best.ids, skip_special_tokens=True).strip()


def test_beams_end_where_an_answer_ends_whatever_the_checkpoint_wants(
    loaded: LoadedHF, images: list[str]
) -> None:
    end, weight = loaded.chat.end, loaded.model.lm_head.weight.data
    before, loaded.model.generation_config.min_new_tokens = weight.clone(), 5
    beams = {"num_beams": 3, "max_new_tokens": 6}
    try:
        request = ask(2, None, decoding=beams)
        state = loaded.hidden(torch.tensor([loaded.chat.prompt(request.turns)]))[0, -1]
        weight[end] = 100 * state / state.norm()
        (reply,) = answers(loaded, [request], 1)["r2"]
        assert (reply.finish, reply.text, reply.ids) == ("stop", "", (end,))
    finally:
        weight.copy_(before)
        loaded.model.generation_config.min_new_tokens = None
    (reply,) = answers(loaded, [ask(2, None, decoding=beams)], 1)["r2"]
    assert (reply.finish, len(reply.ids)) == ("length", 6)


def test_an_answer_goes_on_from_its_prefix(loaded: LoadedHF, images: list[str]) -> None:
    (whole,) = answers(loaded, [ask(3, images[0], answer_prefix="Yes, there")], 1)["r3"]
    assert whole.text.startswith("Yes, there")
    assert loaded.tokenizer.decode(whole.ids, skip_special_tokens=True).strip() in whole.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoding": {"num_beams": 0}}, "request r1: num_beams=0: must be at least 1"),
        ({"decoding": {"num_beams": 5, "temperature": 1.0}}, "request r1: beam search goes without sampling"),
        ({"decoding": {"num_beams": 5}, "n": 2}, "request r1: beam search goes without several answers"),
        ({"view": "diffusion:5000", "image": "x.png"}, "diffusion:5000"),
        ({"image": "gone.png"}, "gone.png"),
        ({"turns": (Turn("prompt", "a"), Turn("prompt", "b"))}, "last turn"),
        ({"turns": (Turn("prompt", "word " * 3000),)}, "no room"),
        ({"turns": (Turn("prompt", "a </s> b"),)}, "request r1: .*special token"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    loaded: LoadedHF, changes: dict[str, Any], message: str
) -> None:
    import dataclasses

    decoding = changes.pop("decoding", {})
    request = dataclasses.replace(ask(1, None, decoding=decoding), **changes)
    with pytest.raises(UserError, match=message):
        list(loaded.generate([request]))


@pytest.fixture(scope="module")
def saved(loaded: LoadedHF, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "a model"
    replace_folder(folder, loaded.save)
    return folder


def test_a_saved_model_loads_unchanged_and_answers_the_same(
    loaded: LoadedHF, saved: Path, images: list[str]
) -> None:
    again = HFModel(str(saved), device="cpu").load()
    left, right = loaded.model.state_dict(), again.model.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    request = ask(3, images[2])
    (one,), (other,) = (answers(model, [request], 1)["r3"] for model in (loaded, again))
    assert one.ids == other.ids
    assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_a_model_from_scratch_is_saved_under_the_hubs_names(saved: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", "pt") as file:
        names = set(file.keys())
    heads = {
        "vision_tower.vision_model.",
        "multi_modal_projector.linear_",
        "language_model.model.",
        "language_model.lm_head.",
    }
    assert all(any(name.startswith(head) for head in heads) for name in names)
    for name in (
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_2.bias",
    ):
        assert name in names


def test_the_saved_processor_gives_the_same_pixels_and_image_tokens(
    loaded: LoadedHF, saved: Path, images: list[str]
) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(saved, backend="pil")
    picture = Image.open(images[4])
    theirs = processor(text="USER: <image>\nHi ASSISTANT:", images=picture, return_tensors="pt")
    assert torch.equal(theirs["pixel_values"][0], loaded.pixels(images[4]))
    ids = theirs["input_ids"][0].tolist()
    assert ids.count(loaded.chat.image_token_id) == loaded.num_image_tokens == 4
    assert ids.count(loaded.tokenizer.bos_token_id) == 1
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Q1"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A1 "}]},
        {"role": "user", "content": "Q2"},
    ]
    text = processor.apply_chat_template(talk, tokenize=False)
    # This tokenizer puts no space after a special token; training's ids have one there.
    assert text == f"<s> {loaded.chat.style.system}USER: <image> \nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"


def test_the_same_seed_makes_the_same_model_and_another_another() -> None:
    one, two, three = (ScratchLlava(device="cpu", seed=s).load().model.lm_head.weight for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_the_tiny_model_has_under_a_hundred_thousand_parameters(loaded: LoadedHF) -> None:
    assert sum(p.numel() for p in loaded.model.parameters()) < 100_000


def test_a_tokenizer_has_llamas_layout_and_loses_nothing() -> None:
    texts = ["Is there a cat? Yes, 10 cats."] * 5
    tokenizer = train_llama_tokenizer(texts, 320)
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x00>", "<0x0A>"]) == [0, 1, 2, 3, 13]
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [len(tokenizer) - 2, len(tokenizer) - 1]
    for text in ("Is there a cat?", "two  spaces", "line\nbreak\n", "Ünï çödé 猫 🙂", "10 cats", "'quoted'"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.get_vocab() == train_llama_tokenizer(texts, 320).get_vocab()
    with pytest.raises(UserError, match="vocab_size"):
        train_llama_tokenizer(texts, 100)


def test_a_saved_tokenizer_loads_as_it_was(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = train_llama_tokenizer(["Is there a cat? Yes."] * 5, 320)
    tokenizer.save_pretrained(tmp_path)
    text = "USER: Is there a dog?\nNo</s>USER: <image>"
    for again in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HFModel("/no/such/folder").load(), "no such model folder"),
        (lambda: HFModel("x", dtype="int4"), "vlm.dtype=int4"),
        (lambda: HFModel("x", preprocessing="warp"), "pad or crop"),
        (lambda: HFModel("x", prompt_style="chatml"), "vicuna_v1"),
        (lambda: ScratchLlava(width=48), "head_size"),
        (lambda: ScratchLlava(device="cpu").load([Path("/no/training")]), "train it first"),
    ],
)
def test_a_model_that_cannot_be_is_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_a_folder_that_holds_no_llava_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        HFModel(str(tmp_path)).load()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="gpt2"):
        HFModel(str(tmp_path)).load()
