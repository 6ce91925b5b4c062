"""A copy of a whole store: in a folder of its own, made beside it, verified, then moved into place; or in another database."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ..errors import HMTError, InputError, StoreDamagedError, StoreError
from ..store.open import DATABASE, copy_into, delete_copy
from .storage import Storage
from .verify import verify


def back_up(store: Storage, place: Path | str) -> None:
    """Copy a store into a folder, or a database.

    Args:
        store: the store to copy.
        place: a folder that does not exist, or is empty; or the URL of a database without a store, or with an empty one.

    Raises:
        InputError: the folder holds something.
        StoreError: the folder cannot be written.
        StoreDamagedError: the copy is not whole. No copy is left then.
    """
    if isinstance(place, str):
        copy_into(store.database, place)
        with Storage(place) as moved:
            try:
                return _check(store, moved)
            except StoreDamagedError:
                delete_copy(moved.database)
                raise
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise InputError(f"{place} is there already. Name a new folder for the copy.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch:
            copy = Path(scratch) / "copy"
            _write(store, copy)
            if place.exists():
                place.rmdir()
            copy.rename(place)
    except HMTError:
        raise
    except OSError as error:
        raise StoreError(f"{place} cannot be written: {error.strerror}. Choose another folder.") from error


def _write(store: Storage, folder: Path) -> None:
    """Write a verified copy into a new folder, and nothing beside it."""
    folder.mkdir(mode=0o700)
    store.database.copy_to(folder)
    with Storage(folder, read_only=True) as copy:
        _check(store, copy)
    for path in folder.iterdir():
        if path.name != DATABASE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check(store: Storage, copy: Storage) -> None:
    """Raise StoreDamagedError unless a copy of a store is whole."""
    problems = verify(copy).problems
    if problems:
        raise StoreDamagedError(
            f"the copy of {store.place} is not whole: {problems[0].rstrip('.')}. What else is wrong: hmt sessions verify"
        )
