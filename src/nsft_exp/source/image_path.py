"""The path of a record's image, which must lie inside the image root."""

from __future__ import annotations

import os
from typing import Any

from nsft_exp.records import UserError


def image_path(root: str, name: Any) -> str | None:
    """Return the path of image `name` under `root`, None for a record without one.

    Raises UserError for a name that is no path, or that leads out of the root.
    """
    if name is None:
        return None
    if not isinstance(name, str) or not name.strip():
        raise UserError("`image` is not a path; mend the record")
    path = os.path.normpath(os.path.join(root, name))
    inner = os.path.normpath(name)
    if (os.path.isabs(name) and not _inside(path, root)) or inner.split(os.sep, 1)[0] == os.pardir:
        raise UserError(f"image `{name}` lies outside of {root}; correct the path")
    return path


def _inside(path: str, root: str) -> bool:
    root = os.path.abspath(root)
    return os.path.commonpath([path, root]) == root
