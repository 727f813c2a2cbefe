"""The matched controls and the weakened critics, on the toy world's own texts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import DEBUG, POPE_ONLY, run_nsft
from nsft_exp.critic.audit import Audit, audit, scenes_of
from nsft_exp.critic.codebook import Codebook
from nsft_exp.critic.contradiction import contradictions
from nsft_exp.critic.cooccurrence import MatchedPrior
from nsft_exp.critic.dialogue import polarity
from nsft_exp.critic.lexicon import Lexicon
from nsft_exp.critic.matched import MatchedRandom
from nsft_exp.critic.reading import Reader
from nsft_exp.critic.rule import EVERYTHING, Rule, judge
from nsft_exp.critic.shuffled import Shuffled
from nsft_exp.critic.truth import truth_of_scene
from nsft_exp.critic.weakness import right_claims
from nsft_exp.records import Correction, Preference, Sample, UserError
from test_critic_rule import TOY, toy_pairs

CONTROLS: dict[str, Any] = {
    "matched_random": partial(MatchedRandom, TOY, EVERYTHING),
    "matched_prior": partial(MatchedPrior, TOY, EVERYTHING),
    "shuffled": partial(Shuffled, TOY, EVERYTHING),
    "shuffled_false": partial(Shuffled, TOY, EVERYTHING, answers="own"),
}
Pairs = list[tuple[Sample, Preference]]


@cache
def pairs_of(kind: str) -> Pairs:
    return toy_pairs(kind)


def corrections(critic: Any, pairs: Pairs, everything: Pairs | None = None) -> list[Correction]:
    """The critic's corrections, after it has seen all pairs where it asks for them."""
    if hasattr(critic, "survey"):
        critic.survey(everything or pairs)
    return list(critic.corrections(pairs))


@cache
def done(name: str, kind: str) -> list[Correction]:
    return corrections(Rule(TOY, EVERYTHING) if name == "nsft" else CONTROLS[name](), pairs_of(kind))


@cache
def kinds() -> list[tuple[str, Any]]:
    """Every wording of a correction as a pattern, with its kind."""
    return list(Reader(Lexicon(TOY))._questions)


def shape(correction: Correction) -> list[tuple[str, str]]:
    """The kind and the polarity of every turn, in order."""
    return [
        (next(k for k, pattern in kinds() if pattern.fullmatch(e.question)), polarity(e.answer))
        for e in correction.dialogue
    ]


def errors_in(kind: str, made: list[Correction]) -> tuple[int, int]:
    """How many turns there are, and how many claims of their answers the annotations contradict."""
    scenes, lexicon = scenes_of(s for s, _ in pairs_of(kind)), Lexicon(TOY)
    reader, turns, wrong = Reader(lexicon), 0, 0
    for (sample, _), correction in zip(pairs_of(kind), made, strict=True):
        for turn in correction.dialogue:
            said = reader.read(turn.question, turn.answer)
            wrong += bool(contradictions(truth_of_scene(scenes[sample.cluster], lexicon), said.claims))
            turns += 1
    return turns, wrong


# --- as nSFT's corrections in all but content --------------------------------------------------------


@pytest.mark.parametrize("kind", ["caption", "detailed"])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_has_nsfts_turns_kinds_and_polarity_and_its_tokens_within_two_percent(
    name: str, kind: str
) -> None:
    from tokenizers import Tokenizer

    nsft, control = done("nsft", kind), done(name, kind)
    assert [shape(c) for c in control] == [shape(c) for c in nsft]
    assert [(c.id, c.status) for c in control] == [(c.id, c.status) for c in nsft]
    assert not any(c.errors for c in control)  # none was looked at
    tokenizer = Tokenizer.from_file(str(Path(TOY).parent / "base" / "tokenizer.json"))
    for part in ("question", "answer"):
        tokens = [
            sum(len(tokenizer.encode(getattr(e, part)).ids) for c in made for e in c.dialogue)
            for made in (nsft, control)
        ]
        assert abs(tokens[1] - tokens[0]) < 0.02 * tokens[0]
    same = sum(len(set(a.dialogue) & set(b.dialogue)) for a, b in zip(nsft, control, strict=True))
    assert same < 0.5 * sum(len(c.dialogue) for c in nsft)


def swapped(text: str, one: str, other: str) -> str:
    return text.replace(one, "\0").replace(other, one).replace("\0", other)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_does_not_read_what_the_rejected_answer_says(name: str) -> None:
    """Another rejected answer whose correction has the same shape gives the same control."""
    pairs, tried = pairs_of("detailed")[:30], 0
    for number, (sample, pair) in enumerate(pairs):
        for one, other in (("red", "green"), ("cup", "hat"), ("blue", "white")):
            changed = replace(pair, rejected=swapped(pair.rejected, one, other))
            shapes = [
                [ask.shape for ask in judge(Rule(TOY, EVERYTHING), sample, p, EVERYTHING).turns]
                for p in (pair, changed)
            ]
            if changed == pair or not shapes[0] or shapes[0] != shapes[1]:
                continue
            others = [*pairs[:number], (sample, changed), *pairs[number + 1 :]]
            (first,), (second,) = (
                corrections(CONTROLS[name](), [(sample, p)], everything)
                for p, everything in ((pair, pairs), (changed, others))
            )
            assert first == second
            tried += 1
        if tried >= 6:
            return
    raise AssertionError(f"only {tried} changes keep the shape")


@pytest.mark.parametrize("name", ["matched_prior", "shuffled", "shuffled_false"])
def test_a_control_depends_on_all_pairs_and_not_on_which_of_them_are_left_to_do(name: str) -> None:
    pairs = pairs_of("detailed")
    assert corrections(CONTROLS[name](), pairs[40:60], pairs) == done(name, "detailed")[40:60]


@pytest.mark.parametrize("kind", ["caption", "detailed"])
def test_true_controls_are_true_and_label_noise_is_often_not(kind: str) -> None:
    for name in ("matched_random", "matched_prior", "shuffled"):
        turns, wrong = errors_in(kind, done(name, kind))
        assert turns > 100
        assert wrong == 0
    turns, wrong = errors_in(kind, done("shuffled_false", kind))
    assert wrong > 0.2 * turns


END = " There is nothing else in the image."


def pair(key: str, chosen: str, added: str = "") -> tuple[Sample, Preference]:
    """A sample with a complete chosen answer, to which the rejected one adds a sentence."""
    sample = Sample(key, None, "Describe the image.", chosen + END)
    return sample, Preference(key, "ok" if added else "equal", chosen + END, f"{chosen} {added}{END}")


def denied(critic: Any, pairs: Pairs) -> set[str]:
    """Which objects a critic denies of a kitchen with a cup, whose rejected answer names a hat too."""
    critic.survey(pairs)
    mine = [pair(f"q{n}", "The image shows a kitchen. There is a cup.", "There is a hat.") for n in range(30)]
    turns = [e.answer for c in critic.corrections(mine) for e in c.dialogue]
    return {turn for turn in turns if polarity(turn) == "no"}


def test_the_prior_denies_what_usually_goes_with_what_is_seen() -> None:
    kitchen = "The image shows a kitchen. There is a cup. There is a bottle."
    pairs = [
        pair("p0", kitchen),
        pair("p1", kitchen),
        pair("p2", "The image shows a street. There is a car."),
    ]
    assert denied(MatchedPrior(TOY, EVERYTHING), pairs) == {"No, there is no bottle."}


def test_the_shuffled_control_denies_what_is_denied_of_other_images() -> None:
    street = "The image shows a street. There is a house."
    pairs = [pair("p0", street, "There is a car."), pair("p1", street, "There is a moon.")]
    wrong = {"No, there is no car.", "No, there is no moon."}
    asked = {*wrong, "No, there is no house."}  # which is affirmed of the streets, and is not in the kitchen
    assert denied(Shuffled(TOY, EVERYTHING), pairs) == asked
    assert denied(Shuffled(TOY, EVERYTHING, answers="own"), pairs) == wrong
    lone = [pair("q0", "The image shows a kitchen. There is a cup.", "There is a hat.")]
    alone = {corrections(Shuffled(TOY, EVERYTHING, seed=n), lone)[0].dialogue for n in range(20)}
    assert len(alone) > 3  # no other image: drawn at random


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_needs_a_codebook(name: str) -> None:
    critic = CONTROLS[name].func(TOY, Codebook())
    with pytest.raises(UserError, match="codebook=full"):
        corrections(critic, pairs_of("caption")[:1])


def test_shuffled_answers_are_the_truths_or_their_own() -> None:
    with pytest.raises(UserError, match=r"critic\.answers=false: .*take truth or own"):
        Shuffled(TOY, EVERYTHING, answers="false")


# --- a worse critic ----------------------------------------------------------------------------------


def audited(**rates: float) -> Audit:
    pairs = pairs_of("detailed")
    made = corrections(Rule(TOY, EVERYTHING, **rates), pairs)  # type: ignore[arg-type]
    rows = [(*p, c) for p, c in zip(pairs, made, strict=True)]
    return audit(rows, scenes_of(s for s, _ in pairs), Lexicon(TOY))["all"]


def test_a_critic_misses_and_invents_at_its_rates_and_the_audit_says_so() -> None:
    perfect = audited()
    assert (perfect.precision, perfect.recall, perfect.invented) == (1.0, 1.0, 0.0)
    missing = audited(miss=0.5)
    assert missing.precision == 1.0
    assert missing.recall == pytest.approx(0.5, abs=0.1)
    inventing = audited(invent=0.1)
    assert inventing.recall == 1.0
    assert inventing.invented == pytest.approx(0.1, abs=0.02)
    assert inventing.found > inventing.true
    both = audited(miss=0.5, invent=0.1)
    assert both.recall == pytest.approx(0.5, abs=0.1)
    assert both.invented == pytest.approx(0.1, abs=0.02)
    assert audited(miss=1.0) == replace(perfect, found=0, true=0, recalled=0)


def test_what_a_critic_invents_makes_false_turns_as_balanced_as_true_ones() -> None:
    made = corrections(Rule(TOY, EVERYTHING, miss=1.0, invent=0.2), pairs_of("detailed"))
    turns, wrong = errors_in("detailed", made)
    assert wrong > 0.4 * turns > 50  # of a denied object's turns one is true: it affirms another object
    yes, no = (sum(c.details.get(answer, 0) for c in made) for answer in ("yes", "no"))
    assert yes == no


def test_right_claims_touch_no_error() -> None:
    sample = Sample("a", None, "?", "There is a red cup and a hat.")
    pair = Preference("a", "ok", sample.answer, "There is a blue cup and a hat.")
    judged = judge(Rule(TOY, EVERYTHING), sample, pair, EVERYTHING)
    assert [(c.kind, c.noun) for c in right_claims(judged.said, judged.wrongs)] == [("existence", "hat")]


@pytest.mark.parametrize(
    ("rates", "codebook", "message"),
    [
        ({"miss": 1.5}, EVERYTHING, r"critic\.miss=1\.5: is a rate"),
        ({"invent": -0.1}, EVERYTHING, r"critic\.invent=-0\.1: is a rate"),
        ({"miss": 0.5}, Codebook(), "use codebook=full"),
    ],
)
def test_rates_that_are_none_are_refused(rates: dict[str, float], codebook: Codebook, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rule(TOY, codebook, **rates)  # type: ignore[arg-type]


@pytest.mark.parametrize("turns", [1, 5])
def test_without_balance_a_dialogue_denies_more_than_it_affirms(turns: int) -> None:
    made = corrections(Rule(TOY, EVERYTHING, max_turns=turns, balance=False), pairs_of("detailed"))
    assert errors_in("detailed", made)[1] == 0
    assert max(len(c.dialogue) for c in made) == turns
    yes, no = (sum(c.details.get(answer, 0) for c in made) for answer in ("yes", "no"))
    assert no > 5 * yes


# --- whole cells -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """A directory for the cells, whose pairs are those of the source `pairs.json` below it."""
    root = tmp_path_factory.mktemp("cells")
    Image.new("RGB", (32, 32), (200, 0, 0)).save(root / "a.png")
    rows = [
        {"image": "a.png", "prompt": f"Picture {n}?", "chosen": p.chosen, "rejected": p.rejected}
        for n, (_, p) in enumerate(pairs_of("detailed")[:8])
    ]
    (root / "pairs.json").write_text(json.dumps(rows))
    return root


def run_cell(root: Path, data: Path, variant: str) -> Path:
    """Run a cell on these pairs and return the folder of its corrections."""
    source = ("pairing=given", "source=preference", f"source.file={root / 'pairs.json'}", "source.size=8")
    quick = [w for w in (*DEBUG, *POPE_ONLY) if not w.startswith("source.files_from")]
    assert run_nsft(root, data, *quick, "limit=1", *source, f"variant={variant}") == 0
    return max((root / "runs" / "critique").glob("*"), key=lambda f: (f / "manifest.json").stat().st_mtime_ns)


def dialogues(folder: Path) -> list[Any]:
    lines = (folder / "records.jsonl").read_text("utf-8").splitlines()
    return [row["dialogue"] for row in map(json.loads, lines)]


def test_a_variant_is_a_control_of_the_same_samples_and_a_resumed_survey_gives_the_same(
    cells: Path, toy_data: Path
) -> None:
    nsft = dialogues(run_cell(cells, toy_data, "none"))
    for variant in ("shuffled", "shuffled_false", "matched_prior"):
        folder = run_cell(cells, toy_data, variant)
        assert list(map(len, dialogues(folder))) == list(map(len, nsft))
        assert dialogues(folder) != nsft
    records = folder / "records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + b'{"half": ')
    (folder / "manifest.json").unlink()
    assert run_cell(cells, toy_data, "matched_prior") == folder
    assert records.read_bytes() == whole
