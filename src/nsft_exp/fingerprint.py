"""Content hashes of files and folders, which all processes of a store share."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from nsft_exp.keys import digest

FOR_PEOPLE = ("README.md", "LICENSE", "LICENSE.txt")
"""Files of a folder that decide no result: a new word in a model card moves no key."""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"}
"""Image folders are not hashed whole: records hash the images that they use."""

SEEN = "create table if not exists seen (place text primary key, version text, hash text)"
"""The table of fingerprints; a file's version is its size and time."""


class Fingerprints:
    """The hashes of files by path, size and time, in a database `file`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen: dict[str, tuple[str, str]] = {}  # place -> (version, hash)
        self._local = threading.local()

    def of(self, path: str | Path) -> str:
        """Return the hash of a file, or of a folder's files."""
        place = os.path.abspath(path)
        if os.path.isdir(place):
            files = sorted(_files_that_count(place))
            return digest({os.path.relpath(file, place): self._hash(file) for file in files})
        return self._hash(place)

    def _hash(self, place: str) -> str:
        """A file's hash: remembered here, else by any process in the store's database, else computed."""
        stat = os.stat(place)
        version = f"{stat.st_size}:{stat.st_mtime_ns}"
        seen = self._seen.get(place)
        if seen is None or seen[0] != version:
            seen = self._seen[place] = (version, _hash(self._database(), place, version))
        return seen[1]

    def _database(self) -> sqlite3.Connection:
        """What all processes have hashed; one connection for each thread."""
        if getattr(self._local, "db", None) is None:
            # Without transactions: hashing a large file must not keep other processes from writing.
            self._local.db = sqlite3.connect(self.file, timeout=60, isolation_level=None)
            self._local.db.execute(SEEN)
        db: sqlite3.Connection = self._local.db
        return db


def _files_that_count(folder: str) -> Iterator[str]:
    """The files of a folder that are in its hash: neither hidden ones nor images, nor what is for people."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if (
                not name.startswith(".")
                and name not in FOR_PEOPLE
                and os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES
            ):
                file = os.path.join(parent, name)
                if os.path.isfile(file):  # not a link to nowhere
                    yield file


def _hash(db: sqlite3.Connection, place: str, version: str) -> str:
    row = db.execute("select version, hash from seen where place = ?", (place,)).fetchone()
    if row and row[0] == version:
        return str(row[1])
    with open(place, "rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    db.execute("insert or replace into seen values (?, ?, ?)", (place, version, value))
    return value
