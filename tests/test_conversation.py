"""Token ids, roles and weights against full expected sequences and LLaVA's own rules for its masks."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tokenizers import Tokenizer

from nsft_exp.conversation import VICUNA_V1, ChatEncoder, cut, encode, encode_prompt, prompt_style
from nsft_exp.records import ROLES, Turn, UserError
from nsft_exp.vlm.tokenizer import train_llama_tokenizer, wrap

WORDS = [
    "a",
    "cat",
    "is",
    "black",
    "there",
    "no",
    "yes",
    "dog",
    "what",
    "colour",
    "two",
    "red",
    "box",
    "it",
    "shows",
    "the",
    "image",
    "of",
]
TEXTS = [
    VICUNA_V1.system + f"USER: {a} {b}? ASSISTANT: {b} {a}. Hi. What. A. Black. Yes, No."
    for a in WORDS
    for b in WORDS
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_llama_tokenizer(TEXTS, 900)


@pytest.fixture(scope="module")
def legacy(tokenizer: Any) -> Any:
    """The other kind of tokenizer.json: a space goes before every piece of text, also after `</s>`."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["pre_tokenizer"]["prepend_scheme"] = "always"
    return wrap(Tokenizer.from_str(json.dumps(content)))


def two_turns() -> list[Turn]:
    question = Turn("prompt", "What is there?"), Turn("prompt", "what colour is it?")
    return [question[0], Turn("chosen", "A cat."), question[1], Turn("correction", "Black.")]


SYSTEM = [
    "▁A",
    "▁chat",
    "▁between",
    "▁a",
    "▁curious",
    "▁user",
    "▁and",
    "▁an",
    "▁artificial",
    "▁intelligence",
    "▁assistant",
    ".",
    "▁The",
    "▁assistant",
    "▁gives",
    "▁helpful",
    ",",
    "▁detailed",
    ",",
    "▁and",
    "▁polite",
    "▁answers",
    "▁to",
    "▁the",
    "▁user",
    "'",
    "s",
    "▁questions",
    ".",
]


def test_a_conversation_is_the_original_llavas_ids_with_bos_once_and_every_answer_ended(
    tokenizer: Any,
) -> None:
    encoded = encode(tokenizer, two_turns(), 3)
    head = ["<s>", *SYSTEM, "▁USER", ":", "▁", "<image>", "<image>", "<image>", "▁", "<0x0A>"]
    first = ["What", "▁is", "▁there", "?", "▁ASSISTANT", ":"]
    second = ["USER", ":", "▁what", "▁colour", "▁is", "▁it", "?", "▁ASSISTANT", ":"]
    expected = [
        *((token, "prompt") for token in head + first),
        *((token, "chosen") for token in ("▁A", "▁cat", ".", "</s>")),
        *((token, "prompt") for token in second),
        *((token, "correction") for token in ("▁Black", ".", "</s>")),
    ]
    assert tokenizer.convert_ids_to_tokens(encoded.ids) == [token for token, _ in expected]
    assert [ROLES[role] for role in encoded.roles] == [role for _, role in expected]
    assert set(encoded.weights) == {1.0}


def test_a_legacy_tokenizer_puts_its_space_after_the_end_of_an_answer_too(
    tokenizer: Any, legacy: Any
) -> None:
    ids, other = encode(tokenizer, two_turns(), 1).ids, encode(legacy, two_turns(), 1).ids
    assert tokenizer.convert_ids_to_tokens(other)[-12:-10] == ["▁USER", ":"]
    assert [i for i in other if i != legacy.convert_tokens_to_ids("▁USER")] == [
        i
        for i in ids
        if i not in (tokenizer.convert_tokens_to_ids("USER"), tokenizer.convert_tokens_to_ids("▁USER"))
    ]


def llava_labels(tokenizer: Any, pairs: list[tuple[str, str]]) -> tuple[list[int], list[bool]]:
    """preprocess_v1 as LLaVA's code does it: cursor, rounds, instruction lengths.

    A round tokenised alone begins `▁USER`, after `</s>` it may be `USER`: with Llama's vocabulary that is one
    token fewer, which the original corrects by 1; here the correction is measured.
    """
    alone, following = (
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("USER", "</s>USER")
    )
    surplus = alone - (following - 1)

    def ids_with_image(text: str) -> list[int]:
        chunks = [tokenizer(chunk)["input_ids"] for chunk in text.split("<image>")]
        ids = chunks[0]
        for chunk in chunks[1:]:
            ids = [*ids, tokenizer.convert_tokens_to_ids("<image>"), *chunk[1:]]
        return ids

    text = VICUNA_V1.system
    for number, (question, answer) in enumerate(pairs):
        text += f"USER: {'<image>' + chr(10) if number == 0 else ''}{question} ASSISTANT: {answer}</s>"
    ids = ids_with_image(text)
    labels, cursor = [False] * len(ids), 1
    for number, one in enumerate(filter(None, text.split("</s>"))):
        instruction = one.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        length, skip = len(ids_with_image(one)), len(ids_with_image(instruction)) - 2
        if number:
            length, skip = length - surplus, skip - surplus
        labels[cursor + skip : cursor + length] = [True] * (length - skip)
        cursor += length
    assert cursor == len(ids)
    return ids, labels


@pytest.mark.parametrize("kind", ["first", "legacy"])
def test_ids_and_masks_equal_llavas_rules_on_random_dialogues(tokenizer: Any, legacy: Any, kind: str) -> None:
    used, rng = (tokenizer, legacy)[kind == "legacy"], random.Random(0)
    for _ in range(40):
        pairs = []
        for _ in range(rng.randint(1, 5)):
            question = " ".join(rng.choices(WORDS, k=rng.randint(1, 6))) + rng.choice(
                ["?", ".", "?\nAnswer it."]
            )
            pairs.append(
                (
                    question,
                    " ".join(rng.choices(WORDS, k=rng.randint(1, 6))).capitalize() + rng.choice([".", ""]),
                )
            )
        turns = [turn for q, a in pairs for turn in (Turn("prompt", q), Turn("chosen", f" {a} "))]
        encoded = encode(used, turns, 1)
        ids, labels = llava_labels(used, pairs)
        assert list(encoded.ids) == ids
        assert [role != 0 for role in encoded.roles] == labels


def test_a_prompt_ends_where_the_answer_begins_and_goes_on_from_a_prefix(tokenizer: Any) -> None:
    turns = two_turns()
    whole = encode(tokenizer, turns, 2).ids
    prompt = encode_prompt(tokenizer, turns[:3], 2)
    assert prompt == whole[: len(prompt)]
    assert tokenizer.convert_ids_to_tokens(whole[len(prompt) :]) == ["▁Black", ".", "</s>"]
    begun = encode_prompt(tokenizer, turns[:1], 2, answer_prefix="A cat")
    assert begun == whole[: len(begun)]
    assert tokenizer.convert_ids_to_tokens(begun[-2:]) == ["▁A", "▁cat"]


def test_a_text_only_conversation_has_no_image_and_is_one_piece_of_text(tokenizer: Any) -> None:
    encoded = encode(tokenizer, [Turn("prompt", "What is there?"), Turn("chosen", "A cat.")], None)
    text = VICUNA_V1.system + "USER: What is there? ASSISTANT: A cat.</s>"
    assert list(encoded.ids) == tokenizer(text)["input_ids"]


def test_a_context_answer_is_not_supervised_but_ended(tokenizer: Any) -> None:
    turns = [Turn("prompt", "a"), Turn("prompt", "Yes."), Turn("prompt", "b"), Turn("rejected", "No.")]
    encoded = encode(tokenizer, turns, None)
    assert list(encoded.ids).count(tokenizer.eos_token_id) == 2
    assert encoded.supervised == 3  # ▁No . </s>


def test_the_tokens_of_a_span_have_its_weight(tokenizer: Any) -> None:
    turn = Turn("chosen", "  A black cat.", spans=((4, 9, 2.5),))
    encoded = encode(tokenizer, [Turn("prompt", "a"), turn], None)
    answer = [
        (t, w)
        for t, w, r in zip(
            tokenizer.convert_ids_to_tokens(encoded.ids), encoded.weights, encoded.roles, strict=True
        )
        if r
    ]
    assert answer == [("▁A", 1.0), ("▁black", 2.5), ("▁cat", 1.0), (".", 1.0), ("</s>", 1.0)]


def test_cutting_takes_the_end_of_the_answer_and_never_the_image(tokenizer: Any) -> None:
    encoder = ChatEncoder(tokenizer)
    encoded = encoder.encode([Turn("prompt", "a cat"), Turn("chosen", "Yes, there is a cat.")], 4)
    short = cut(encoded, len(encoded.ids) - 3, encoder.image_token_id)
    assert short is not None
    assert short.ids == encoded.ids[:-3]
    assert list(short.ids).count(encoder.image_token_id) == 4
    assert cut(encoded, len(encoded.ids) - 8, encoder.image_token_id) is None  # nothing supervised is left
    image = encoded.ids.index(encoder.image_token_id)
    assert cut(encoded, image + 2, encoder.image_token_id) is None


@pytest.mark.parametrize("text", ["see <image> here", "the end</s>", "<s>"])
def test_text_with_a_special_token_is_refused(tokenizer: Any, text: str) -> None:
    with pytest.raises(UserError, match="special token"):
        encode(tokenizer, [Turn("prompt", text), Turn("chosen", "Yes.")], 1)


def test_an_unknown_prompt_style_is_refused() -> None:
    with pytest.raises(UserError, match="vicuna_v1"):
        prompt_style("vicuna_v9")
