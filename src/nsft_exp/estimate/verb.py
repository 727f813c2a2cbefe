"""`nsft estimate`: cells, stages, calls, tokens, money, hours and disk of a run or sweep before it starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nsft_exp.estimate import forecast
from nsft_exp.estimate.calls import Asking
from nsft_exp.estimate.pilot import fly
from nsft_exp.estimate.survey import Survey
from nsft_exp.estimate.sweep import Cell, cells_of
from nsft_exp.estimate.table import show
from nsft_exp.records import UserError
from nsft_exp.store import Store, write_atomically

USAGE = """\
nsft estimate [-m] [--config-name STUDY] [words of the run] [pilot=32] [out=FILE]

  The words are those of the run: nsft estimate -m method=cont_sft,nsft seed=0,1,2 before nsft -m method=...
  pilot   answer and criticise so many records of every pass, for real (a critic's server is paid for them).
          They are kept: the run finds them done. Tokens, money and hours are then told from them
  out     write the same as JSON

Without a pilot nothing is run, asked or paid. Cells, stages and known calls are exact; calls about answers
that the VLM has not given yet are an upper bound. What was never measured is `unknown` (null in JSON):
training and evaluation are timed by finished ones of the same kind in the run store. Hours are those of one
stage after the other. As with nsft, a study's sweep needs -m; without it the words are one cell."""
OWN = ("pilot", "out")


def estimate(arguments: list[str], complete: Callable[[list[str]], list[str]]) -> int:
    """Print the estimate; returns 0.

    `complete` turns a verb's words into those that Hydra takes. Raises UserError for words that do not
    compose, cells that would be refused, and a pilot that is no number.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    own = dict(word.split("=", 1) for word in arguments if word.partition("=")[0] in OWN and "=" in word)
    size, out = _size(own.get("pilot")), own.get("out")
    cells = cells_of(complete([word for word in arguments if word.partition("=")[0] not in OWN]))
    store = Store(cells[0].config["paths"]["runs"])
    if size:
        fly(cells, store, size)
    found = summary(surveyed(cells, store), store) | {"pilot": size}
    show(found)
    if out:
        _write(Path(out), found)
    return 0


def _size(word: str | None) -> int | None:
    if word is None:
        return None
    if not word.isdigit() or int(word) < 1:
        raise UserError(f"pilot={word}: take a number of records from 1 on; pilot=32 is enough for most")
    return int(word)


def _write(out: Path, found: dict[str, Any]) -> None:
    try:
        write_atomically(out, json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"out={out}: cannot write there ({error.strerror}); give another file") from error


def surveyed(cells: list[Cell], store: Store) -> Survey:
    """Look at all cells. Raises UserError, with the cell's name, for input that it would refuse."""
    survey = Survey(store)
    for cell in cells:
        survey.add(cell.plan)
    survey.close()
    return survey


def summary(survey: Survey, store: Store) -> dict[str, Any]:
    """Return the estimate as plain values; None is what is not known."""
    past = forecast.Past(store)
    took, disk = forecast.seconds(survey, past), forecast.disk(survey, past)
    trainings, calls = survey.of("train"), [_calls(asking) for asking in survey.askings]
    return {
        "cells": {"total": survey.num_cells, "finished": survey.num_finished},
        "stages": {kind: _stages(survey, kind) for kind in forecast.KINDS},
        "vlm": {
            "records": _left(survey, "respond"),
            "questions": sum(e.num_left for e in survey.of("evaluate")),
            "tokens_of_records": forecast.vlm_tokens(survey),
        },
        "calls": calls,
        "money": forecast.total(c["money"] for c in calls),
        "steps": {
            "left": sum(e.num_left for e in trainings),
            "exact": all(e.exact for e in trainings),
        },
        "hours": _with_total({kind: None if s is None else s / 3600 for kind, s in took.items()}),
        "disk": {"needed": _with_total(disk), "free": forecast.free(store)},
    }


def _stages(survey: Survey, kind: str) -> dict[str, Any]:
    """The distinct stages of a kind: those of rounds whose model is not trained yet are `later`."""
    passes = survey.of(kind)
    rows = {"records_left": _left(survey, kind)} if kind in ("respond", "critique") else {}
    later = sum(not e.ready for e in passes) if kind != "evaluate" else 0
    return {"distinct": len(passes), "finished": sum(e.finished for e in passes), "later": later, **rows}


def _left(survey: Survey, kind: str) -> int:
    return sum(len(entry.left) for entry in survey.of(kind))


def _calls(asking: Asking) -> dict[str, Any]:
    """What one asker still asks one model: known calls, the most there can be, and what they come to."""
    expected, tokens = asking.left_expected, asking.tokens
    return {
        "who": asking.who,
        "model": asking.model,
        "server": asking.client.base_url,
        "known": asking.left,
        "at_most": asking.left + asking.unknown,
        "exact": not asking.unknown,
        "expected": None if expected is None else round(expected),
        "input_tokens": tokens and tokens[0],
        "output_tokens": tokens and tokens[1],
        "money": asking.money,
    }


def _with_total(parts: dict[str, Any]) -> dict[str, Any]:
    return {**parts, "total": forecast.total(parts.values())}
