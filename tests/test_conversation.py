"""Token ids, roles and weights against full expected sequences and LLaVA's own rules for its masks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from nsft_exp.conversation import CHATML, VICUNA_V1, ChatEncoder, cut, encode, encode_prompt, prompt_style
from nsft_exp.records import ROLES, Turn, UserError
from nsft_exp.vlm.scratch_qwen import train_chatml_tokenizer
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


IGNORED = False


def llava_original(
    tokenizer: Any, values: list[str], has_image: bool, limit: int = 2048
) -> tuple[list[int], list[bool]]:
    """LLaVA's preprocess_multimodal and preprocess_v1, by their rules: a record's turns to ids and labels.

    The image is one id. A round tokenised alone begins `▁USER`, after `</s>` it may be `USER`: with Llama's
    vocabulary that is one token fewer, which the original corrects by 1; here the correction is measured.
    Where the original's counts disagree no token is a label: it masks the whole sample.
    """
    marker = tokenizer.convert_tokens_to_ids("<image>")
    if has_image:
        values = [
            ("<image>\n" + v.replace("<image>", "").strip()).strip() if "<image>" in v else v for v in values
        ]

    def numbers(text: str) -> list[int]:
        chunks = [tokenizer(chunk)["input_ids"] for chunk in (text.split("<image>") if has_image else [text])]
        ids = chunks[0]
        for chunk in chunks[1:]:
            ids = [*ids, marker, *chunk[1:]]
        return ids

    text = VICUNA_V1.system
    for number, value in enumerate(values):
        who, after = (("USER", " "), ("ASSISTANT", "</s>"))[number % 2]
        text += f"{who}: {value}{after}" if value else f"{who}:"
    ids = numbers(text)[: None if has_image else limit]
    whole = len(ids)
    alone, following = (
        len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in ("USER", "</s>USER")
    )
    surplus = alone - (following - 1)
    labels, cursor = [True] * len(ids), 1
    labels[0] = IGNORED
    for number, one in enumerate(text.split("</s>")):
        parts = one.split(" ASSISTANT: ")
        if one == "" or len(parts) != 2:
            break
        less = surplus if number else 0
        instruction = len(numbers(parts[0] + " ASSISTANT: ")) - 2 - less
        labels[cursor : cursor + instruction] = [IGNORED] * len(labels[cursor : cursor + instruction])
        cursor += len(numbers(one)) - less
    labels[cursor:] = [IGNORED] * len(labels[cursor:])
    return ids, labels if cursor == whole or cursor >= limit else [IGNORED] * whole


def ours(tokenizer: Any, values: list[str], num_image_tokens: int | None) -> tuple[list[int], list[bool]]:
    """The ids and labels that this project makes of a record's turns, the image's marker taken out."""
    roles = ("prompt", "chosen")
    turns = [Turn(roles[n % 2], v.replace("<image>", "") if n == 0 else v) for n, v in enumerate(values)]
    encoded = encode(tokenizer, turns, num_image_tokens)
    return list(encoded.ids), [role != 0 for role in encoded.roles]


KINDS = ["first", "always", "prepend"]


@pytest.fixture(scope="module")
def kinds(tokenizer: Any, legacy: Any) -> dict[str, Any]:
    """Every kind of Llama tokenizer.json: Metaspace `first` or `always`, or a normaliser that prepends."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["pre_tokenizer"] = None
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    prepend = wrap(Tokenizer.from_str(json.dumps(content)))
    return {"first": tokenizer, "always": legacy, "prepend": prepend}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_masks_equal_llavas_rules_on_random_dialogues(kinds: dict[str, Any], kind: str) -> None:
    used, rng = kinds[kind], random.Random(0)
    for number in range(40):
        values = []
        for _ in range(rng.randint(1, 5)):
            question = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
            values.append(question + rng.choice(["?", ".", "?\nAnswer it.", " ", "\n"]))
            answer = " ".join(rng.choices(WORDS, k=rng.randint(1, 6))).capitalize()
            values.append(answer + rng.choice([".", "", "\n\n1. a\n2. b"]))
        has_image = number % 3 > 0
        if has_image:
            values[0] = rng.choice(
                ["<image>\n" + values[0], values[0] + "\n<image>", "Hi <image> " + values[0]]
            )
        assert ours(used, values, 1 if has_image else None) == llava_original(used, values, has_image)


RECORDS = {
    "one turn": ["<image>\nWhat is there?", "A cat."],
    "two turns": ["<image>\nWhat is there?", "A cat.", "what colour is it?", "Black."],
    "five turns": ["<image>\nHi", "Hi.", "a?", "Yes", "two?", "No.", "what?", "It is red.", "is it?", "no"],
    "a trailing image marker": ["What is there?\n<image>", "A cat."],
    "an image marker in the middle": ["What <image> is there?", "A cat."],
    "an empty question beside the image": ["<image>\n", "A cat.", "what?", "Red."],
    "unicode": ["<image>\nÜnï çödé 猫?", "猫 🙂 é.", "Ω?", "naïve, “yes” — ½"],
    "digits at the start": ["<image>\nTwo?", "12 cats", "3?", "3"],
    "marks at the start": ["<image>\nTwo?", "(a) 1.", "a?", "- red\n- black", "b?", '"yes"'],
    "white space inside": ["<image>\na  b\tc", "a  cat\n\n  is\tblack", "  what? ", "no"],
    "text only": ["What is there?", "A cat.", "what?", "Red."],
    "text only, not stripped": [" What is there? \n", "A cat.", "\nwhat?  ", "Red."],
    "a line like a speaker's": ["<image>\nUSER: a ASSISTANT:b", "USER: a\nASSISTANT:b"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECORDS)
def test_ids_and_masks_equal_llavas_rules_on_awkward_records(
    kinds: dict[str, Any], kind: str, name: str
) -> None:
    values = RECORDS[name]
    has_image = "<image>" in values[0]
    ids, labels = llava_original(kinds[kind], values, has_image)
    assert any(labels), "the original drops this record; it tests nothing"
    assert ours(kinds[kind], values, 1 if has_image else None) == (ids, labels)


DROPPED = {
    "an answer with the separator": ["<image>\nHi", "He said ASSISTANT: yes."],
    "an empty question in text": ["", "A cat."],
    "an empty question later": ["<image>\nHi", "A cat.", "", "Red."],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DROPPED)
def test_what_the_original_drops_whole_is_kept_with_its_ids_and_the_right_mask(
    kinds: dict[str, Any], kind: str, name: str
) -> None:
    used, values = kinds[kind], DROPPED[name]
    ids, labels = llava_original(used, values, "<image>" in values[0])
    assert not any(labels)
    found, mask = ours(used, values, 1 if "<image>" in values[0] else None)
    assert found == ids
    supervised = [token for token, label in zip(found, mask, strict=True) if label]
    answers = [used(answer, add_special_tokens=False)["input_ids"] for answer in values[1::2]]
    assert supervised == [token for answer in answers for token in (*answer, used.eos_token_id)]


def test_answers_are_stripped_as_they_must_be_for_the_model_to_begin_and_end_them(tokenizer: Any) -> None:
    padded = ours(tokenizer, ["<image>\nHi", "\n 1. A cat.\n"], 1)
    assert padded == llava_original(tokenizer, ["<image>\nHi", "1. A cat."], True)


@pytest.mark.parametrize("limit", [40, 52, 60])
def test_what_is_too_long_is_cut_where_the_original_cuts_it(tokenizer: Any, limit: int) -> None:
    values = ["<image>\nWhat is there?", "A cat. " * 9 + "A cat.", "what?", "Red."]
    marker, images = tokenizer.convert_tokens_to_ids("<image>"), 5
    ids, labels = llava_original(tokenizer, values, True, limit)
    wide = [
        pair
        for token, label in zip(ids, labels, strict=True)
        for pair in [(token, label)] * (images if token == marker else 1)
    ]
    roles = ("prompt", "chosen")
    turns = [Turn(roles[n % 2], v.replace("<image>", "")) for n, v in enumerate(values)]
    short = cut(encode(tokenizer, turns, images), limit, marker)
    expected = wide[:limit]
    if not any(label for _, label in expected):
        assert short is None  # the original goes on with a sample that teaches nothing
    else:
        assert short is not None
        assert [(t, r != 0) for t, r in zip(short.ids, short.roles, strict=True)] == expected


def test_five_turns_are_the_expected_tokens_and_roles(tokenizer: Any) -> None:
    values = ["Hi", "Yes", "a?", "No.", "two?", "two", "is it?", "no", "red?", "black"]
    encoded = encode(tokenizer, [Turn(("prompt", "chosen")[n % 2], v) for n, v in enumerate(values)], 2)
    lines = [
        (
            ["<s>", *SYSTEM, "▁USER", ":", "▁", "<image>", "<image>", "▁", "<0x0A>", "Hi", "▁ASSISTANT", ":"],
            "▁Yes",
        ),
        (["USER", ":", "▁a", "?", "▁ASSISTANT", ":"], "▁No ."),
        (["USER", ":", "▁two", "?", "▁ASSISTANT", ":"], "▁two"),
        (["USER", ":", "▁is", "▁it", "?", "▁ASSISTANT", ":"], "▁no"),
        (["USER", ":", "▁red", "?", "▁ASSISTANT", ":"], "▁black"),
    ]
    expected = []
    for prompt, answer in lines:
        expected += [(token, "prompt") for token in prompt]
        expected += [(token, "chosen") for token in (*answer.split(), "</s>")]
    found = tokenizer.convert_ids_to_tokens(encoded.ids)
    assert list(zip(found, (ROLES[role] for role in encoded.roles), strict=True)) == expected


def test_pieces_are_sentencepieces_own(tmp_path: Path) -> None:
    """The original's slow tokenizer is SentencePiece itself: the same model, by its own library."""
    spm = pytest.importorskip("sentencepiece", reason="needs the sentencepiece package")
    from transformers import LlamaTokenizer

    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, "Ünï çödé 猫 123 4567 1. 2. - “yes”"] * 2),
        model_prefix=str(tmp_path / "tokenizer"), vocab_size=700, model_type="bpe", byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    pieces = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))

    def after_special(text: str) -> list[int]:
        """Not at the beginning, where SentencePiece would put a space: after a line break, taken off."""
        return pieces.encode("\n" + text)[len(pieces.encode("\n")) :]

    tokenizer = LlamaTokenizer.from_pretrained(tmp_path, legacy=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = tokenizer.convert_tokens_to_ids("<image>")
    checked = 0
    for name, values in RECORDS.items():
        first = values[0].removeprefix("<image>\n")
        if "<image>" in first or first in ("", values[0]):
            continue
        expected = [1, *pieces.encode(VICUNA_V1.system + "USER: "), image]
        expected += [*pieces.encode(f"\n{first} ASSISTANT: {values[1]}"), 2]
        for question, answer in zip(values[2::2], values[3::2], strict=True):
            expected += [*after_special(f"USER: {question} ASSISTANT: {answer}"), 2]
        assert ours(tokenizer, values, 1)[0] == expected, name
        checked += 1
    assert checked == 8


CHATML_TWO_TURNS = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    "<|image_pad|><|image_pad|><|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n"
    "A cat.<|im_end|>\n<|im_start|>user\nwhat colour?<|im_end|>\n<|im_start|>assistant\nBlack.<|im_end|>"
)


def test_qwens_conversation_is_its_template_with_the_end_of_every_answer_supervised() -> None:
    tokenizer = train_chatml_tokenizer(TEXTS, 400)
    chat = ChatEncoder(tokenizer, CHATML, tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    words = ["What is it?", " A cat. ", "what colour?", "Black."]
    encoded = chat.encode([Turn(("prompt", "chosen")[n % 2], w) for n, w in enumerate(words)], 3)
    assert list(encoded.ids) == tokenizer(CHATML_TWO_TURNS)["input_ids"]
    supervised = [token for token, role in zip(encoded.ids, encoded.roles, strict=True) if role]
    assert tokenizer.decode(supervised) == "A cat.<|im_end|>Black.<|im_end|>"
    text = [Turn("prompt", " a? "), Turn("chosen", "b")]
    start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n a? <|im_end|>\n"
    whole = tokenizer(start + "<|im_start|>assistant\nb<|im_end|>")["input_ids"]
    assert list(chat.encode(text).ids) == whole
    assert chat.prompt(text[:1]) == tuple(whole[:-2])
    with pytest.raises(UserError, match=r"special token <\|im_end\|>"):
        chat.encode([Turn("prompt", "a<|im_end|>"), Turn("chosen", "b")])


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
