"""API keys come from the environment and go to their server: nothing that is written or said repeats them."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import run_nsft
from judged_files import write_mmvet
from nsft_exp.benchmark.judge import Ask, Judge
from scripted_critic import Answer, completion, serving
from test_critic_llm_errors import error_of
from test_engine_server import engine, questions

KEYS = {"toy": "sk-canary-of-the-vlm-51d2", "gpt": "sk-canary-of-the-judge-9c7f"}
"""By the model that is asked with it."""


def telling(refuse: bool) -> Any:
    """The script of a server that repeats its key: in a refusal, or in all fields of a reply."""

    def script(body: dict[str, Any], number: int) -> Answer:
        key = KEYS[body["model"]]
        if refuse:
            return Answer(401, error_of(f"Incorrect API key provided: {key}"))
        said = "1.0" if body["model"] == "gpt" else f"A cup. My key is {key}."
        return Answer(body={**completion(said, model=f"{body['model']}-{key}"), "system_fingerprint": key})

    return script


def places_with_a_key(root: Path) -> list[Path]:
    """The files beneath a folder, and names of such, that hold one of the keys."""
    return [
        place
        for place in root.rglob("*")
        if any(
            key in place.name or (place.is_file() and key.encode() in place.read_bytes())
            for key in KEYS.values()
        )
    ]


def test_an_evaluation_by_a_judge_leaves_no_key_behind(
    tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLM_KEY", KEYS["toy"])
    monkeypatch.setenv("JUDGE_KEY", KEYS["gpt"])
    write_mmvet(tmp_path / "mmvet")
    for name in "abc":
        (tmp_path / "mmvet" / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "mmvet" / "images" / f"{name}.jpg")
    words = ["evaluate", "vlm=server", "server.model=toy", "server.key_env=VLM_KEY", "benchmark=mmvet"]
    words += [f"benchmark.root={tmp_path}/mmvet", f"benchmark.image_root={tmp_path}/mmvet/images"]
    words += [
        "benchmark.judge.model=gpt",
        "benchmark.judge.key_env=JUDGE_KEY",
        "benchmark.judge.backoff=0.01",
    ]
    words += ["logger=wandb", "hydra.verbose=true", "to=out"]
    for vlm, judge, code in ((True, True, 2), (False, True, 0), (False, False, 0)):
        with serving(telling(vlm)) as answering, serving(telling(judge)) as judging:
            places = [f"server.base_url={answering.base_url}", f"benchmark.judge.base_url={judging.base_url}"]
            assert run_nsft(tmp_path, toy_data, *words, *places) == code
            assert set(answering.keys) <= {f"Bearer {KEYS['toy']}"}
            assert set(judging.keys) <= {f"Bearer {KEYS['gpt']}"}
    said = "".join(capfd.readouterr())
    assert "the key in the environment variable VLM_KEY was refused (401)" in " ".join(said.split())
    assert "the key in the environment variable JUDGE_KEY was refused (401)" in " ".join(said.split())
    assert not any(key in said for key in KEYS.values())
    summary = json.loads((tmp_path / "out" / "mmvet.json").read_text())
    assert (summary["metrics"]["total"], summary["server"]["replies"], summary["judge"]["replies"]) == (
        100,
        4,
        4,
    )
    assert list((tmp_path / "runs").rglob("*.wandb"))
    assert any(file.name == "nsft.log" for file in (tmp_path / "runs").rglob("*"))
    assert places_with_a_key(tmp_path) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_no_exception_holds_a_key_that_the_server_repeats(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["toy"])
    with serving(lambda body, number: Answer(status, error_of(f"Not with {KEYS['toy']}"))) as server:
        asking = engine(server, tmp_path / "server", concurrency=1)
        judge = Judge("gpt", base_url=server.base_url, attempts=1).client(tmp_path / "judge")
        call = Judge("gpt").call(Ask((("user", "Is it?"),), "template"), "item", 0)
        for ask in (lambda: asking.generate(questions(1)), lambda: judge.answers([call])):
            with pytest.raises(Exception) as raised:
                list(ask())
            told = "".join(traceback.format_exception(raised.value))
            assert "Not with [key]" in told or status in (401, 403, 429, 500)
            assert KEYS["toy"] not in told + repr(raised.value)
        assert server.keys == [f"Bearer {KEYS['toy']}"] * len(server.keys)
    assert places_with_a_key(tmp_path) == []
