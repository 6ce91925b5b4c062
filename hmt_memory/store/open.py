"""The place of a store and the database that holds it. The only module that names a database."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ..engine.places import cache_folder
from ..errors import InputError, MissingDependencyError
from .backend import Backend, Capability
from .postgres.address import Address
from .sql import copying
from .sql.transaction import SqlTransaction
from .sqlite.database import SQLITE, Database
from .sqlite.files import DATABASE

__all__ = [
    "DATABASE",
    "SQLITE",
    "copy_into",
    "data_folder",
    "default_store",
    "delete_copy",
    "keep_tenants_apart",
    "open_backend",
    "place_of",
    "shown",
]

_SCHEME = re.compile("([A-Za-z][A-Za-z0-9+.-]*):/")
_SERVER = ("postgresql", "postgres")


def default_store() -> Path | str:
    """Return the default place of sessions: $HMT_STORE, else hmt-memory in $XDG_DATA_HOME, else in ~/.local/share."""
    chosen = os.environ.get("HMT_STORE")
    return place_of(chosen) if chosen else data_folder()


def data_folder() -> Path:
    """Return this user's own folder of sessions."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "hmt-memory"


def place_of(place: str | Path) -> Path | str:
    """Return the folder that a place names, or the URL of a database server.

    Raises:
        InputError: the URL is of no database that a store can be in, or was made a path.
    """
    begins = _SCHEME.match(str(place))
    scheme = begins[1].lower() if begins else ""
    if scheme in _SERVER and isinstance(place, str) and "://" in place:
        return place
    if scheme in _SERVER or "://" in str(place):
        raise InputError(f"a store is a folder, or a text that begins with postgresql://, not {scheme}:...")
    return Path(place).expanduser()


def shown(place: Path | str) -> str:
    """Return a place as messages name it: without a password."""
    place = place_of(place)
    return str(place) if isinstance(place, Path) else Address.of(place).shown


def open_backend(place: Path | str, *, timeout: float, read_only: bool = False) -> Backend:
    """Open the database of a store.

    Args:
        place: a folder, made if it does not exist, unless `read_only`; or `postgresql://host/database`.
        timeout: seconds to wait for another process that writes.
        read_only: whether to change nothing.

    Raises:
        StoreError: the place cannot be used, or a newer version wrote it.
        StoreDamagedError: the database is not whole.
        MissingDependencyError: the driver is not installed.
    """
    place = place_of(place)
    if isinstance(place, Path):
        return _embedded(place, timeout=timeout, read_only=read_only)
    try:
        from .postgres.database import Database as Postgres
    except ImportError as error:
        raise _no_driver(error) from error
    return Postgres(place, timeout=timeout, read_only=read_only, caches=_caches(), embedded=_embedded)


def keep_tenants_apart(place: Path | str, roles: Sequence[str], *, existing: str | None = None, timeout: float = 5.0) -> None:
    """Let each of some database roles see and write rows of its own only, from now on.

    Args:
        place: URL of the database, as the owner of the tables.
        roles: that may be tenants, or whose members may.
        existing: the role whose rows those are that exist; None: there are none.
        timeout: seconds to wait for others.

    Raises:
        InputError: the place is a folder, a role does not exist, or rows do and `existing` is missing.
        StoreError: the place cannot be used, or this role is not the owner.
    """
    place = place_of(place)
    if isinstance(place, Path):
        raise InputError(
            f"{place} is a folder, and SQLite has no tenants: whoever may read its file may read all of it. Give each tenant a "
            "folder, or use postgresql://host/database."
        )
    try:
        from .postgres.operator import Operator
    except ImportError as error:
        raise _no_driver(error) from error
    operator = Operator(place, timeout=timeout, caches=_caches(), embedded=_embedded)
    try:
        operator.keep_apart(roles, existing=existing)
    finally:
        operator.close()


def _caches() -> Path:
    return cache_folder() / "stores"


def _no_driver(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(f"a store in PostgreSQL needs {error.name}. Run: pip install 'hmt-memory[postgres]'")


def copy_into(source: Backend, place: str) -> None:
    """Copy everything of a store, as of one moment, into a database that holds no store yet.

    Args:
        source: the store.
        place: URL of the database.

    Raises:
        InputError: it holds a store that is not empty.
    """
    target = open_backend(place, timeout=source.timeout)
    try:
        if Capability.SEPARATES_TENANTS in target.capabilities:
            raise InputError(f"{shown(place)} is a tenant's, and its ids are given by the server. Export and import sessions.")
        with source.reading() as rows, target.writing() as new:
            copying.copy(cast("SqlTransaction", rows), cast("SqlTransaction", new))
    finally:
        target.close()


def delete_copy(copy: Backend) -> None:
    """Delete everything that `copy_into` has copied."""
    with copy.writing() as rows:
        copying.clear(cast("SqlTransaction", rows))


def _embedded(folder: Path, *, timeout: float = 5.0, read_only: bool = False) -> Database:
    return Database(folder, timeout=timeout, read_only=read_only)
