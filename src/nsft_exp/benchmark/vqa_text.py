"""Answers' normal forms in TextVQA (EvalAI's, from mmf's m4c evaluator) and VQAv2 (vqaEval.py).

Both are kept with their slips: at most 32 full stops go, contractions with a capital never match, and
the text is judged by its marks before any of them is replaced.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DOT = re.compile(r"\.(?!\d)")
_MAX_DOTS = 32  # re.UNICODE stands where re.sub takes its count
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_DIGITS = dict(
    zip(
        ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        ("0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
        strict=True,
    )
)
_ARTICLES = ("a", "an", "the")


def _without_one_apostrophe(form: str) -> list[str]:
    return [form[:k] + form[k + 1 :] for k, char in enumerate(form) if char == "'"]


_FORMS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""
_CONTRACTIONS = {slip: form for form in _FORMS.split() for slip in _without_one_apostrophe(form)}
_CONTRACTIONS["somebody'd"] = "somebodyd"


@lru_cache(maxsize=1 << 17)
def normalise_m4c(text: str) -> str:
    """Return the EvalAI/m4c normal form of an answer (TextVQA; LLaVA's VQAv2 upload)."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _digits_and_articles(_punctuation(_blanks(text)))


@lru_cache(maxsize=1 << 17)
def normalise_vqa(text: str) -> str:
    """Return VQAv2's normal form of an answer without tabs, line ends and outer blanks."""
    return _digits_and_articles(_punctuation(text))


def _blanks(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    """Drop each mark that stands next to a blank (any mark if a digit,digit occurs), else make it a blank."""
    drop_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _MARKS:
        if mark in text:
            beside_blank = mark + " " in text or " " + mark in text
            result = result.replace(mark, "" if beside_blank or drop_all else " ")
    return _DOT.sub("", result, count=_MAX_DOTS)


def _digits_and_articles(text: str) -> str:
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(said: str, answers: Sequence[str]) -> float:
    """Mean over the people left out in turn of min(1, people among the rest who said so / 3), in 0-1."""
    same = Counter(answers)[said]
    without, with_one = min(1.0, same / 3), min(1.0, (same - 1) / 3)
    return (same * with_one + (len(answers) - same) * without) / len(answers) if same else 0.0


def m4c_accuracy(said: str, answers: Sequence[str]) -> float:
    """TextVQA's score of an answer against ten people's, all in normal form."""
    return soft_accuracy(normalise_m4c(said), [normalise_m4c(a) for a in answers])


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """VQAv2's score; nobody's answer is put in normal form where all people gave the same."""
    said, answers = _blanks(said), [_blanks(a) for a in answers]
    if len(set(answers)) > 1:
        said, answers = normalise_vqa(said), [normalise_vqa(a) for a in answers]
    return soft_accuracy(said, answers)
