"""A copy of a whole store in a folder of its own: made beside it, verified, then moved into place."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ..errors import HMTError, InputError, StoreDamagedError, StoreError
from ..store.open import DATABASE
from .storage import Storage
from .verify import verify


def back_up(store: Storage, place: Path) -> None:
    """Copy a store into a folder.

    Args:
        store: the store to copy.
        place: must not exist, or be empty.

    Raises:
        InputError: the folder holds something.
        StoreError: the folder cannot be written.
        StoreDamagedError: the copy is not whole. No copy is left then.
    """
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
        problems = verify(copy).problems
    if problems:
        raise StoreDamagedError(
            f"the copy of {store.place} is not whole: {problems[0].rstrip('.')}. What else is wrong: hmt sessions verify"
        )
    for path in folder.iterdir():
        if path.name != DATABASE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
