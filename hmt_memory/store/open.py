"""The place of a store and the database that holds it. The only module that names a database."""

from __future__ import annotations

import os
from pathlib import Path

from .backend import Backend
from .sqlite.database import SQLITE, Database
from .sqlite.files import DATABASE

__all__ = ["DATABASE", "SQLITE", "default_folder", "open_backend"]


def default_folder() -> Path:
    """Return the default folder of sessions: $HMT_STORE, else hmt-memory in $XDG_DATA_HOME, else in ~/.local/share."""
    if chosen := os.environ.get("HMT_STORE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "hmt-memory"


def open_backend(folder: Path, *, timeout: float, read_only: bool = False) -> Backend:
    """Open the database of a store.

    Args:
        folder: made if it does not exist, unless `read_only`.
        timeout: seconds to wait for another process that writes.
        read_only: whether to change nothing.

    Raises:
        StoreError: the folder cannot be used, or a newer version wrote it.
        StoreDamagedError: the database is not whole.
    """
    return Database(folder, timeout=timeout, read_only=read_only)
