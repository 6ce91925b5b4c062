"""The files of a store's folder: made for their owner only, known by identity, with room kept for erasing on a full disk."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
from pathlib import Path

from ...errors import StoreError
from ...files import open_for_owner

log = logging.getLogger("hmt_memory")
DATABASE, RESERVE = "memory.db", "reserve"
_OWNER_FILE, _OWNER_FOLDER = 0o600, 0o700
_RESERVE_BYTES = 4 << 20


def find_store(folder: Path) -> Path:
    """Return the database file of an existing store.

    Raises:
        StoreError: there is no store.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise StoreError(f"{folder} holds no store. Check the folder, or open it without read_only to make one.")
    return path.resolve()


def make_store(folder: Path) -> Path:
    """Make the missing parts of a store's folder and file. Returns the file, with links resolved.

    Raises:
        StoreError: the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=_OWNER_FOLDER)
        (folder / "locks").mkdir(exist_ok=True, mode=_OWNER_FOLDER)
        path = (folder / DATABASE).resolve()
        _own(path)
        for beside in (log_of(path), path.with_name(f"{path.name}-shm")):
            if beside.exists():
                _own(beside)
        keep_reserve(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be a store: {error.strerror}. Choose another folder.") from error
    _warn_of_others(folder)
    return path


def log_of(path: Path) -> Path:
    """Return the write-ahead log of a database file."""
    return path.with_name(f"{path.name}-wal")


def _own(path: Path) -> None:
    """Make a file that only its owner can read, or take it away from others."""
    if not path.exists():
        os.close(open_for_owner(path))
    elif stat.S_IMODE(path.stat().st_mode) & 0o077:
        with contextlib.suppress(PermissionError):
            path.chmod(_OWNER_FILE)


def _warn_of_others(folder: Path) -> None:
    """Warn of a folder that other users of the machine can look into."""
    with contextlib.suppress(OSError):
        if os.name == "posix" and stat.S_IMODE(folder.stat().st_mode) & 0o077:
            log.warning("other users can look into the folder %s. Keep them out: chmod 700 %s", folder, folder)


def identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from another of the same name; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def keep_reserve(folder: Path) -> None:
    """Set room aside that only an erasure on a full disk uses, as long as the disk has plenty."""
    path = folder / RESERVE
    if path.exists() or shutil.disk_usage(folder).free < 8 * _RESERVE_BYTES:
        return
    handle = open_for_owner(path)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, _RESERVE_BYTES)
        else:
            os.write(handle, bytes(_RESERVE_BYTES))
    except OSError:
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def spend_reserve(folder: Path) -> None:
    """Give the room that was set aside to the next write."""
    (folder / RESERVE).unlink(missing_ok=True)
