"""The repository as its users meet it: the wheel, the constraints, the README, the Makefile."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from data_vllm_requires import REQUIRES
from nsft_exp import config as configs
from nsft_exp.__main__ import VERBS, split_config_name, with_experiments

ROOT = Path(__file__).parents[1]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_constraints_have_no_hashes_and_no_local_versions() -> None:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    assert "--hash" not in text
    assert not any("+" in version or "@" in version for version in pins().values())


def test_constraints_leave_out_compromised_releases_of_lightning() -> None:
    assert pins()["lightning"] not in ("2.6.2", "2.6.3")


def test_constraints_fit_vllm() -> None:
    checked = 0
    for line in REQUIRES:
        need = Requirement(line)
        pinned = pins().get(canonicalize_name(need.name))
        if pinned:
            assert need.specifier.contains(pinned), f"{line}: constraints.txt has {pinned}"
            checked += 1
    assert checked >= 15


def test_constraints_fit_our_own_dependencies() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        need = Requirement(line)
        assert need.specifier.contains(pins()[canonicalize_name(need.name)]), line


def test_an_installed_wheel_works_in_any_directory(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels, place, elsewhere = tmp_path / "wheels", tmp_path / "a place", tmp_path / "else where"
    elsewhere.mkdir()
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place), str(wheel)], check=True)
    command = [sys.executable, "-m", "nsft_exp", "--config-name", "demo", "--cfg", "job", "--resolve"]
    environment = os.environ | {"PYTHONPATH": str(place)}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["vlm"]["path"] == str(place / "nsft_exp" / "toy" / "base")
    assert (place / "nsft_exp" / "toy" / "base" / "model.safetensors").stat().st_size < 8_000_000


VERB_WORDS = ("to", "format", "kind", "python", "answers", "out", "strict", "replicates", "pilot")
"""Words of verbs that are no config keys."""


def commands() -> list[str]:
    """Every `nsft ...` command that the README shows (those of CONTRIBUTING: tests/test_contributing.py)."""
    text = (ROOT / "README.md").read_text("utf-8")
    return sorted({c for c in re.findall(r"`(nsft [^`]+)`", text) if "<" not in c and "..." not in c})


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_composes(command: str) -> None:
    words = [w for w in shlex.split(command)[1:] if w not in ("-m", "--cfg", "job", "--help")]
    if words and words[0] in VERBS:
        verb, *words = words
        words = [w for w in words if w.partition("=")[0] not in VERB_WORDS]
        words = [w for w in words if verb != "compare" and not w.startswith("vlm=exports/")]  # places
    name, overrides = split_config_name(words)
    configs.compose_config([re.sub(r"=([^$]*?),.*", r"=\1", word) for word in overrides], name)


def test_the_readme_shows_commands() -> None:
    assert len(commands()) >= 10


def test_every_make_target_of_the_readme_exists_and_help_lists_all() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    assert set(re.findall(r"`?make ([a-z-]+)", text)) <= targets
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"make ([a-z-]+)", done.stdout)) >= targets - {"help"}


def test_a_study_of_experiments_is_found_by_name() -> None:
    assert with_experiments(["-m", "--config-name", "demo"])[:2] == [
        "--config-dir",
        str(configs.folder("experiments").resolve()),
    ]
    assert with_experiments(["method=nsft"]) == ["method=nsft"]
    assert with_experiments(["--config-dir", "x", "--config-name", "y"])[1] == "x"
