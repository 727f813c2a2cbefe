"""`nsft check`: looks at a source or a VLM before hours of work depend on it."""

from __future__ import annotations

from nsft_exp import config as configs
from nsft_exp.records import UserError

USAGE = """\
nsft check source=<source> ...   its records, images, duplicates, lengths, and images that benchmarks have too
nsft check vlm=<vlm> ...         a checkpoint's tokens, template, preprocessing and weights

  --json   a source's findings as one JSON object

Takes the words of a cell. A source is measured with the tokenizer of vlm= and the length of recipe=, and
compared with the images of benchmark=."""


def check(arguments: list[str]) -> int:
    """`nsft check`: 0: nothing is damaged, 1: something is. Raises UserError where nothing can be checked."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    words = [word for word in arguments if word != "--json"]
    groups = {word.lstrip("+~").partition("=")[0].partition(".")[0] for word in words}
    config = configs.compose_config(words)
    plain = configs.resolved(config)
    if "source" in groups:
        from nsft_exp.check.source import check_source

        return check_source(plain, as_json="--json" in arguments)
    if "vlm" in groups:
        from nsft_exp.check.vlm import check_vlm

        return check_vlm(plain)
    raise UserError("nsft check: name what to check, with source=... or vlm=...")
