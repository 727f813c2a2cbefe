"""Keys, append-only records, manifests, locks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nsft_exp.keys import IGNORED, is_ignored, leaves
from nsft_exp.output import append_records
from nsft_exp.records import Preference, UserError, to_json
from nsft_exp.store import StageFolder, Store, replace_folder


def test_a_key_does_not_depend_on_the_order_of_the_config(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.key("train", {"a": {"x": 1, "y": 2}, "b": 3}) == store.key(
        "train", {"b": 3, "a": {"y": 2, "x": 1}}
    )


def test_a_key_moves_with_stage_leaf_input_and_revision(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = {
        store.key("train", {"a": 1}),
        store.key("evaluate", {"a": 1}),
        store.key("train", {"a": 2}),
        store.key("train", {"a": 1}, inputs="x"),
        store.key("train", {"a": 1}, revision=2),
    }
    assert len(keys) == 5


def test_hardware_and_places_are_not_in_a_key_but_the_content_of_places_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text("same")

    def nodes(place: str, devices: int) -> dict[str, dict[str, object]]:
        return {"source": {"file": str(tmp_path / place / "a.json")}, "trainer": {"devices": devices}}

    before = store.key("train", nodes("one", 1))
    assert store.key("train", nodes("two", 8)) == before
    (tmp_path / "two" / "a.json").write_text("other")
    assert store.key("train", nodes("two", 8)) != before


def test_a_folder_of_weights_is_fingerprinted_by_content(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"abc")
    before = store.fingerprint(model)
    (model / "README.md").write_text("a model card decides no result")
    assert store.fingerprint(model) == before
    (model / "weights").write_bytes(b"abd")
    os.utime(model / "weights", ns=(1, 1))
    assert store.fingerprint(model) != before


def test_a_fingerprint_is_remembered_in_memory_and_for_other_processes_and_a_change_is_noticed(
    tmp_path: Path,
) -> None:
    file, database = tmp_path / "a.bin", tmp_path / "runs" / "fingerprints.sqlite"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    store = Store(tmp_path / "runs")
    first = store.fingerprint(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    database.rename(tmp_path / "aside")
    assert store.fingerprint(file) == first
    assert not database.exists(), "this process knows it without the database"
    (tmp_path / "aside").rename(database)
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))  # nobody can tell: the same size and time
    assert Store(tmp_path / "runs").fingerprint(file) == store.fingerprint(file) == first
    os.utime(file, ns=(2, 2))
    changed = hashlib.sha256(b"two").hexdigest()
    assert store.fingerprint(file) == Store(tmp_path / "runs").fingerprint(file) == changed


def test_while_files_are_hashed_other_processes_can_write_what_they_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    for name in "abc":
        (tmp_path / "model" / name).write_text(name)
    original, written = hashlib.file_digest, []

    def meanwhile(file: Any, kind: str) -> Any:
        with contextlib.closing(sqlite3.connect(tmp_path / "fingerprints.sqlite", timeout=0)) as db, db:
            db.execute("insert into seen values (?, '', '')", (f"other {len(written)}",))
        written.append(file.name)
        return original(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", meanwhile)
    Store(tmp_path).fingerprint(tmp_path / "model")
    assert [Path(name).name for name in written] == ["a", "b", "c"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "new").touch()
        raise OSError("full")

    replace_folder(tmp_path / "a", lambda folder: (folder / "old").touch())
    with pytest.raises(OSError, match="full"):
        replace_folder(tmp_path / "a", half)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["old"]
    replace_folder(tmp_path / "a", lambda folder: (folder / "new").touch())
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_every_ignored_pattern_is_about_places_hardware_or_looks() -> None:
    assert is_ignored("source.image_root")
    assert is_ignored("trainer.micro_batch")
    assert not is_ignored("recipe.batch_size")
    assert not is_ignored("trainer.precision")
    assert not is_ignored("source.size")
    assert len(set(IGNORED)) == len(IGNORED)


def test_leaves_of_nested_configs_have_dotted_names() -> None:
    assert dict(leaves({"a": {"b": 1, "c": [2, {"d": 3}]}, "e": {}})) == {
        "a.b": 1,
        "a.c.0": 2,
        "a.c.1.d": 3,
        "e": {},
    }


def test_a_torn_last_line_is_not_read_and_is_cut_before_appending(tmp_path: Path) -> None:
    folder = Store(tmp_path).open("respond", "x", "k")
    with folder.appending() as append:
        append({"id": "1"})
    file = folder.path / "records.jsonl"
    file.write_bytes(file.read_bytes() + b'{"id": "2", "te')
    assert [row["id"] for row in folder.records()] == ["1"]
    with folder.appending() as append:
        append({"id": "3"})
    assert [row["id"] for row in folder.records()] == ["1", "3"]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = Store(tmp_path).open("respond", "x", "k")
    folder.path.mkdir(parents=True)
    (folder.path / "records.jsonl").write_text('{"id": "1"}\n{"id":\n{"id": "3"}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        list(folder.records())


def test_rows_written_before_a_kill_are_whole(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from nsft_exp.store import Store\n"
        f"folder = Store({str(tmp_path)!r}).open('respond', 'x', 'k')\n"
        "with folder.appending() as append:\n"
        "    for i in range(100):\n"
        "        append({'id': str(i), 'text': 'ä' * 50})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    rows = list(Store(tmp_path).open("respond", "x", "k").records())
    assert [row["id"] for row in rows] == [str(i) for i in range(100)]


def test_records_stand_in_the_samples_order_once_a_stage_is_complete(tmp_path: Path) -> None:
    folder, inputs = StageFolder(tmp_path), {"a": "1", "b": "2", "c": "3"}
    with folder.appending() as append:  # what a killed run left, and a record whose input was another
        for key, made_from in (("b", "2"), ("x", "9"), ("c", "0"), ("c", "3")):
            append({"input": made_from, **to_json(Preference(key, "ok", "é", "f"))})
    append_records(folder, [Preference("a", "equal", "g", "g")], inputs, 1)
    rows = [(row["id"], row["input"]) for row in folder.records()]
    assert rows == [("a", "1"), ("b", "2"), ("c", "0"), ("c", "3"), ("x", "9")]
    assert (folder.manifest() or {})["statuses"] == {"equal": 1, "ok": 4}
    before = (tmp_path / "records.jsonl").read_bytes()
    append_records(folder, [], inputs, 0)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_two_processes_that_want_the_same_stage_wait_for_one_another(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from nsft_exp.store import Store\n"
        f"root = Path({str(tmp_path)!r})\n"
        "folder = Store(root).open('respond', 'x', 'k')\n"
        "with folder.lock():\n"
        "    with folder.appending('log.jsonl') as append:\n"
        "        append({'who': sys.argv[1], 'what': 'in'})\n"
        "        time.sleep(0.3)\n"
        "        append({'who': sys.argv[1], 'what': 'out'})\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
    assert [child.wait() for child in children] == [0, 0, 0]
    rows = list(Store(tmp_path).open("respond", "x", "k").records("log.jsonl"))
    assert [row["what"] for row in rows] == ["in", "out"] * 3
    assert all(rows[i]["who"] == rows[i + 1]["who"] for i in (0, 2, 4))


def test_a_manifest_says_that_a_stage_is_complete(tmp_path: Path) -> None:
    folder = Store(tmp_path).open("train", "x", "k")
    assert folder.manifest() is None
    folder.finish({"n": 3})
    assert folder.manifest() == {"n": 3}
    folder.reopen()
    assert folder.manifest() is None


def test_a_place_that_cannot_be_written_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write there .*set paths\.runs"):
        Store(tmp_path / "file" / "runs")


def test_records_are_readable_json_lines(tmp_path: Path) -> None:
    folder = Store(tmp_path).open("respond", "x", "k")
    with folder.appending() as append:
        append({"id": "ü", "n": 1})
    assert json.loads((folder.path / "records.jsonl").read_text("utf-8")) == {"id": "ü", "n": 1}


def test_what_else_lies_beside_the_images_moves_no_key_and_another_place_of_test_images_does(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "runs")

    def key(group: str, place: Path) -> str:
        return store.key("evaluate", {group: {"image_root": str(place)}})

    before = {group: key(group, tmp_path) for group in ("source", "benchmark")}
    (tmp_path / "notes.json").write_text("{}")
    assert {group: key(group, tmp_path) for group in before} == before
    assert key("source", tmp_path / "elsewhere") == before["source"]
    assert key("benchmark", tmp_path / "elsewhere") != before["benchmark"]
