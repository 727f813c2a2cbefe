"""A Llama-type tokenizer (SentencePiece-like BPE with byte fallback) trained on given texts.

Its layout is that of the LLaVA checkpoints: ids 0 `<unk>`, 1 `<s>`, 2 `</s>`, then
the 256 bytes, then the pieces; `<image>` and `<pad>` are added tokens after the last piece. A space is
written "▁", and one is put before the first piece of a text, but not after a special token (non-legacy).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nsft_exp.records import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPACE = "▁"
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
RESERVED = len(SPECIAL) + len(BYTES)
IMAGE, PAD = "<image>", "<pad>"


def train_llama_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on `texts` with at most `vocab_size` pieces besides `<image>` and `<pad>`.

    Save it with `save_pretrained(folder)`; AutoTokenizer and vLLM load the folder. The same texts in the same
    order give the same tokenizer. Raises UserError when `vocab_size` leaves no room for pieces.
    """
    pieces, merges = _learn(texts, vocab_size - RESERVED)
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *BYTES, *pieces])}
    return wrap(_tokenizer(vocabulary, merges))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer saved in a folder. Raises UserError when there is none."""
    from transformers import PreTrainedTokenizerFast

    if not (Path(folder) / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: there is no tokenizer.json here; train a tokenizer or name another folder"
        )
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _learn(texts: Iterable[str], room: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The pieces and merges of a BPE of at most `room` pieces. Line breaks stay bytes, as in Llama."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if room < 1:
        raise UserError(f"vocab_size: the byte tokens alone take {RESERVED}; ask for more than that")
    learner = Tokenizer(models.BPE())
    # No piece spans two words, a mark or two digits; the finished tokenizer needs no such rule, since its
    # merges never cross them.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=True),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=room, show_progress=False)
    learner.train_from_iterator(_lines(texts), trainer)
    learnt = json.loads(learner.to_str())["model"]
    return sorted(learnt["vocab"], key=learnt["vocab"].get), [tuple(pair) for pair in learnt["merges"]]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from filter(None, text.splitlines())


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (*SPECIAL, IMAGE, PAD)]
    )
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer as the transformers class that AutoTokenizer loads again as it is."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
