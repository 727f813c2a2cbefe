"""Encoding, the order of global batches, and collated tensors as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nsft_exp.batching import GlobalBatches, collate, global_batches, micro_batches
from nsft_exp.conversation import ChatEncoder
from nsft_exp.encoding import encode_examples
from nsft_exp.images import Layout
from nsft_exp.records import Conversation, Example, Turn, UserError
from nsft_exp.vlm.tokenizer import train_llama_tokenizer


@pytest.fixture(scope="module")
def chat() -> ChatEncoder:
    return ChatEncoder(train_llama_tokenizer(["Is there a cat? Yes, No. A dog."] * 3, 320))


def talk(answer: str, image: str | None = "x", role: str = "chosen", view: str = "clean") -> Conversation:
    return Conversation(image, (Turn("prompt", "Is there?"), Turn(role, answer)), view)


def fake_pixels(image: str, view: str) -> torch.Tensor:
    return torch.full((3, 2, 2), float(sum(map(ord, image + view))))


def test_a_micro_batch_is_right_padded_with_roles_weights_and_every_image_once(chat: ChatEncoder) -> None:
    pair = Example("p", (talk("Yes."), talk("No, A dog.", role="rejected")))
    text = Example("t", (talk("No.", image=None),))
    other = Example("o", (talk("A cat.", image="y"), talk("A cat.", view="blurred")))
    encoded, counts = encode_examples([pair, text, other], chat, 4, 512)
    assert counts == {"trimmed": 0, "dropped": 0}
    batch = collate(encoded, [2, 0, 1], fake_pixels, pad_id=7)
    rows = [*other.conversations, *pair.conversations, *text.conversations]
    length = max(len(c.ids) for e in encoded for c in e.conversations)
    for row, conversation in enumerate(rows):
        one = chat.encode(conversation.turns, 4 if conversation.image else None)
        pad = length - len(one.ids)
        assert batch.ids[row].tolist() == [*one.ids, *[7] * pad]
        assert batch.role[row].tolist() == [*one.roles, *[0] * pad]
        assert batch.weight[row].tolist() == [*one.weights, *[0.0] * pad]
    assert batch.example.tolist() == [0, 0, 1, 1, 2]
    assert batch.keys == [(2, 0), (2, 1), (0, 0), (0, 1), (1, 0)]
    assert batch.image_rows is not None
    assert batch.image_rows.tolist() == [0, 1, 2, 2]
    assert batch.pixels is not None
    assert [tuple(value.shape) for value in batch.pixels.values] == [(3, 2, 2)] * 3
    assert torch.equal(batch.pixels.values[1], fake_pixels("x", "blurred"))
    assert batch.tokens == int((batch.weight > 0).sum())


def test_an_example_without_anything_to_learn_is_refused_by_name(chat: ChatEncoder) -> None:
    silent = Example("quiet", (talk("Yes.", role="prompt"),))
    with pytest.raises(UserError, match=r"example quiet: no token is supervised"):
        encode_examples([silent], chat, 4, 512)


def test_a_special_token_in_a_text_is_refused_by_name(chat: ChatEncoder) -> None:
    with pytest.raises(UserError, match=r"example e7: .*special token </s>"):
        encode_examples([Example("e7", (talk("Yes</s>"),))], chat, 4, 512)


def test_what_does_not_fit_is_trimmed_or_dropped_and_counted_and_the_log_says_why(
    chat: ChatEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    long, short = Example("long", (talk("A cat. " * 30),)), Example("short", (talk("Yes."),))
    whole, _ = encode_examples([long, short], chat, 4, 4096)
    limit = whole[1].length
    kept, counts = encode_examples([long, short], chat, 4, limit)
    assert counts == {"trimmed": 1, "dropped": 0}
    assert [e.length for e in kept] == [limit, limit]
    assert encode_examples([long, short], chat, 4, 20)[1] == {"trimmed": 0, "dropped": 2}
    image = whole[0].conversations[0].ids.tolist().index(chat.image_token_id)
    encode_examples([long], chat, 4, image + 2)
    assert "example long: dropped" in caplog.messages[0]
    assert "would cut its image" in caplog.messages[-1]
    encode_examples([long], chat, 4, image + 6)
    assert "would cut its whole answer" in caplog.messages[-1]


def test_images_of_different_sizes_have_as_many_tokens_as_their_layout_says(chat: ChatEncoder) -> None:
    layouts = {"x": Layout(3, (1, 2)), "y": Layout(7, (4, 5))}
    examples = [Example(i, (talk("Yes.", image=i), talk("No.", image=i))) for i in layouts]
    encoded, _ = encode_examples([*examples, Example("t", (talk("No.", image=None),))], chat,
                                 lambda image, view: layouts[image], 512)  # fmt: skip
    found = [c.ids.tolist().count(chat.image_token_id) for e in encoded for c in e.conversations]
    assert found == [3, 3, 7, 7, 0]
    batch = collate(encoded, [0, 1, 2], lambda image, view: torch.zeros(layouts[image].tokens, 2), pad_id=7)
    assert batch.pixels is not None
    assert batch.pixels.grids == ((1, 2), (4, 5))
    assert [tuple(value.shape) for value in batch.pixels.values] == [(3, 2), (7, 2)]
    moved = batch.to("meta")
    assert moved.pixels is not None
    assert moved.pixels.values[0].is_meta


def test_an_image_that_cannot_be_read_is_refused_with_its_example(chat: ChatEncoder) -> None:
    def gone(image: str, view: str) -> Layout:
        raise UserError(f"{image}: there is no such image")

    with pytest.raises(UserError, match="example e: x: there is no such image"):
        encode_examples([Example("e", (talk("Yes."),))], chat, gone, 512)


def test_every_example_is_seen_once_an_epoch_in_an_order_of_the_seed() -> None:
    steps = global_batches(10, 4, 3, seed=5)
    assert [len(s) for s in steps] == [4, 4, 2] * 3
    epochs = [[n for step in steps[start : start + 3] for n in step] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert steps == global_batches(10, 4, 3, seed=5)
    assert steps != global_batches(10, 4, 3, seed=6)


def test_micro_batches_hold_examples_of_similar_length() -> None:
    assert micro_batches([3, 0, 2, 1], [5, 9, 1, 7], 2) == [[2, 0], [3, 1]]
    assert micro_batches([0, 1, 2, 3], [5, 9, 1, 7], 3) == [[2, 0, 3], [1]]


def numbers(loader: Any) -> list[list[int]]:
    return [[n for micro in batch for n in micro.numbers] for batch in loader]


def make_loader(chat: ChatEncoder, workers: int = 0) -> GlobalBatches:
    examples = [Example(str(n), (talk("Yes. " * (n + 1)),)) for n in range(5)]
    encoded, _ = encode_examples(examples, chat, 4, 512)
    return GlobalBatches(encoded, global_batches(5, 2, 2, 0), 2, fake_pixels, 0, workers)


def test_a_loader_goes_on_where_its_state_was_saved(chat: ChatEncoder) -> None:
    whole = numbers(make_loader(chat))
    loader = make_loader(chat)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    again = make_loader(chat)
    again.load_state_dict(loader.state_dict())
    assert len(again) == 6
    assert numbers(again) == whole[2:]


def test_worker_processes_prepare_the_same_batches(chat: ChatEncoder) -> None:
    assert numbers(make_loader(chat, workers=1)) == numbers(make_loader(chat))
