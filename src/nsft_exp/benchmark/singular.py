"""The singular of an English noun as CHAIR gets it (the rules of clips/pattern's `singularize`).

The rules are crude and the scores depend on that: "bus" becomes "bu" and "ties" "ty", so neither counts
as an object. They are kept to the letter, as data: the first rule that fits decides.
"""

from __future__ import annotations

from functools import lru_cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# A token is left as it is if it ends one of these words ("s", "ss", "ors" and "scissors" all are).
_KEPT = _words(
    """bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes
    djinn eland elk flounder gallows georgia graffiti headquarters herpes high-jinks homework innings
    jackanapes mackerel measles mews mumps news pincers pliers proceedings rabies salmon scissors series
    shears species swine swiss trout tuna whiting wildebeest advice bread butter cheese electricity equipment
    fruit furniture garbage gravel happiness information ketchup knowledge love luggage mathematics
    mayonnaise meat mustard progress research rice sand software understanding water"""
)
# Plurals of these keep their plural form.
_IE_PLURALS = tuple(
    word + "s"
    for word in _words(
        """alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie
    groupie hankie hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie pixie
    quickie reverie rookie softie sortie stoolie sweetie techie toughie valkyrie veggie weenie yuppie
    zombie"""
    )
)
_IRREGULAR = dict(
    pair.split(":")
    for pair in _words(
        """atlantes:atlas atlases:atlas axes:axe beeves:beef brethren:brother children:child
    corpora:corpus corpuses:corpus ephemerides:ephemeris feet:foot ganglia:ganglion geese:goose genera:genus
    genii:genie graffiti:graffito helves:helve kine:cow leaves:leaf loaves:loaf men:man mongooses:mongoose
    monies:money moves:move mythoi:mythos numena:numen occipita:occiput octopodes:octopus opera:opus
    opuses:opus our:my oxen:ox penes:penis penises:penis people:person sexes:sex soliloquies:soliloquy
    teeth:tooth testes:testis trilbys:trilby turves:turf zoa:zoon"""
    )
)
_PREPOSITIONS = frozenset(
    _words(
        """about above across after among around at athwart before behind below beneath beside besides between
    betwixt beyond but by during except for from in into near of off on onto out over since till to under
    until unto upon with"""
    )
)
_BEFORE_OXEN = ("ae", "itis", "eaux", "quizzes", "matrices", "apices", "vertices", "indices")
_ANY, _VOWELS = "", "aeiouy"
# (endings, characters that must or (^) must not stand before them, characters cut off, what is put there).
# "." asks for any one character before, "" for none.
_RULES: tuple[tuple[tuple[str, ...], str, int, str], ...] = (
    (("ae",), ".", 1, ""),
    (("itis",), ".", 0, ""),
    (("eaux",), ".", 1, ""),
    (("quizzes",), _ANY, 3, ""),
    (("matrices",), _ANY, 3, "x"),
    (("apices", "vertices", "indices"), _ANY, 4, "ex"),
    (("aliases", "statuses"), _ANY, 2, ""),
    (("i",), "octp|vir", 1, "us"),
    (("crises", "axes", "testes"), _ANY, 2, "is"),
    (("shoes",), _ANY, 1, ""),
    (("oes", "buses"), _ANY, 2, ""),
    (("ice",), "m|l", 3, "ouse"),
    (("xes", "ches", "sses", "shes"), _ANY, 2, ""),
    (("movies",), _ANY, 1, ""),
    (("ombies",), ".", 1, ""),
    (("series",), _ANY, 0, ""),
    (("quies",), _ANY, 3, "y"),
    (("ies",), "^" + _VOWELS, 3, "y"),
    (("alves", "elves", "olves"), _ANY, 3, "f"),
    (("eaves",), "^d", 3, "f"),
    (("arves",), _ANY, 3, "f"),
    (("erves",), _ANY, 1, ""),
    (("nives", "lives", "wives"), _ANY, 3, "fe"),
    (("lves", "rves"), _ANY, 3, "f"),
    (("aves", "eves", "oves", "sives", "tives", "hives"), _ANY, 1, ""),
    (("ves",), "^f", 3, "fe"),
    (("bases", "diagnoses", "parentheses", "prognoses", "synopses", "theses"), _ANY, 2, "is"),
    (("opses", "yses"), ".", 2, "is"),
    (("hoses", "doses", "roses", "ooses", "noses", "boses", "closes", "poses"), _ANY, 1, ""),
    (("oses",), ".", 2, "is"),
    (("ta", "ia"), _ANY, 1, "um"),
    (("news",), _ANY, 0, ""),
    (("s",), _ANY, 1, ""),
)


@lru_cache(maxsize=65536)
def singularize(word: str) -> str:
    """Return the singular of a lower-case token, or the token itself where no rule fits."""
    head, *rest = word.split("-")
    if rest and rest[0] in _PREPOSITIONS:  # mothers-in-law
        return "-".join([singularize(head), *rest])
    if word.endswith("'"):
        return singularize(word[:-1]) + "'s"
    if any(kept.endswith(word) for kept in _KEPT) or word.endswith(_IE_PLURALS):
        return word
    for plural, singular in _IRREGULAR.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    return _by_rule(word)


def _by_rule(word: str) -> str:
    if word.startswith("oxen") and not word.endswith(_BEFORE_OXEN):
        return "ox" + word[4:]
    if word.endswith("analyses"):  # pattern doubles a letter where something stands before it
        return word[:-2] + "is" if word == "analyses" else word[:-8] + "analyasis"
    for endings, before, cut, put in _RULES:
        ending = next((e for e in endings if word.endswith(e)), None)
        if ending is not None and _fits(word[: -len(ending)], before):
            return word[: len(word) - cut] + put
    return word


def _fits(head: str, before: str) -> bool:
    if before == _ANY:
        return True
    if before == ".":
        return head != ""
    if before.startswith("^"):
        return head != "" and head[-1] not in before
    return head != "" and head[-1] in before
