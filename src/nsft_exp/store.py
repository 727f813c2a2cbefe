"""The store: a folder a stage, append-only records, manifests written last, locks.

A stage's result is one folder, `runs/<stage>/<readable name>-<key>/`, with `config.yaml` (what was asked),
`records.jsonl` (one line a record, appended) and `manifest.json` (written last: it says that the stage
is complete). This is the only module that knows how `runs/` is laid out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from nsft_exp.fingerprint import Fingerprints
from nsft_exp.keys import digest, is_ignored, is_place, leaves
from nsft_exp.records import UserError


class Store:
    """The folder `runs/`: finds stage folders by key and remembers fingerprints of files."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._fingerprints = Fingerprints(self.root / "fingerprints.sqlite")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{self.root}: cannot write there ({reason}); set paths.runs to a writable folder"
            ) from error

    def key(self, stage: str, nodes: dict[str, Any], inputs: Any = None, revision: int = 1) -> str:
        """Return the key of a stage: 12 hex digits over what decides its result.

        `nodes` are resolved config nodes: ignored leaves are left out, and for a leaf that is a place
        the fingerprint of the file or folder there goes in. `inputs` is any JSON value (keys or digests
        of what the stage consumes).
        """
        kept = {name: value for name, value in leaves(nodes) if not is_ignored(name)}
        places = {
            name: self.fingerprint(value)
            for name, value in leaves(nodes)
            if isinstance(value, str) and is_place(name) and Path(value).exists()
        }
        parts = {"stage": stage, "nodes": kept, "places": places, "inputs": inputs, "revision": revision}
        return digest(parts)[:12]

    def open(self, stage: str, name: str, key: str) -> StageFolder:
        """Return the folder of one stage (it need not exist yet)."""
        return StageFolder(self.root / stage / f"{name}-{key}")

    def fingerprint(self, path: str | Path) -> str:
        """Return a content hash of a file, or of a folder's files; remembered by path, size and time."""
        return self._fingerprints.of(path)


class StageFolder:
    """One stage's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"StageFolder({self.path})"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder: a second process that wants the same stage waits here."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / ".lock"):
            yield

    def write_config(self, config: dict[str, Any]) -> None:
        """Write `config.yaml`: what this stage was asked to do."""
        write_atomically(
            self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        )

    def read_config(self) -> dict[str, Any]:
        """Return the content of `config.yaml`."""
        return yaml.safe_load((self.path / "config.yaml").read_text("utf-8"))

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of a complete stage, else None."""
        file = self.path / "manifest.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else None

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, after which the stage counts as complete."""
        write_atomically(
            self.path / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        )

    def reopen(self) -> None:
        """Take the manifest away: the stage is being extended."""
        (self.path / "manifest.json").unlink(missing_ok=True)

    def records(self, name: str = "records.jsonl") -> Iterator[dict[str, Any]]:
        """Yield the rows of a JSONL file; a torn last line (a killed writer) is left out."""
        file = self.path / name
        if not file.exists():
            return
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UserError(
                        f"{file}: line {number} is not JSON; delete the folder to run the stage again"
                    ) from error

    def rewrite(self, rows: list[dict[str, Any]], name: str = "records.jsonl") -> None:
        """Replace a JSONL file's rows, at once."""
        write_atomically(self.path / name, "".join(map(_line, rows)))

    @contextlib.contextmanager
    def appending(self, name: str = "records.jsonl") -> Iterator[Appender]:
        """Open a JSONL file for appending; a torn last line is cut off first."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / name
        cut_torn_line(file)
        with file.open("ab") as handle:
            yield Appender(handle)


class Appender:
    """Appends rows to an open JSONL file; each row is on disk before the next is made."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def __call__(self, row: dict[str, Any]) -> None:
        self.handle.write(_line(row).encode())
        self.handle.flush()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def cut_torn_line(file: Path) -> None:
    """Cut off what follows the last newline of a file: the half-written row of a killed process."""
    if not file.exists():
        return
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        with file.open("r+b") as handle:
            handle.truncate(content.rfind(b"\n") + 1)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a file so that it is either whole or absent: to a temporary name, synced, then renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        handle.write(content.encode() if isinstance(content, str) else content)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(file)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder through a neighbour, so that it is either whole or not there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
