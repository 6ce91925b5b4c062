"""Files that are replaced whole or not at all, and files that only their owner can read. Knows nothing of their content."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_OWNER_FILE, _ANY_FILE = 0o600, 0o666


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of `path`, on disk, when the block ends; where the block raises, `path` stays.

    Args:
        path: in a folder that is there.
        private: whether only its owner may read it; else the process's umask decides.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, _OWNER_FILE if private else _ANY_FILE), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    with contextlib.suppress(OSError):  # not every system syncs folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_for_owner(path: Path) -> int:
    """Open a file for writing that nobody else can read, whatever the umask; return its descriptor."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, _OWNER_FILE)
    if hasattr(os, "fchmod"):
        with contextlib.suppress(PermissionError):  # another user owns it and lets this one write
            os.fchmod(handle, _OWNER_FILE)
    return handle
