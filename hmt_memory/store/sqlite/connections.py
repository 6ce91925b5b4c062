"""The connections to one SQLite file: pooled, closed before a fork, and never to another file of the same name."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import SessionBusyError, StoreDamagedError, StoreError, StoreFullError
from . import files
from .forking import GATE

_PRAGMAS = (
    "synchronous = FULL",
    "wal_autocheckpoint = 0",
    "foreign_keys = ON",
    "secure_delete = ON",
    "trusted_schema = OFF",
    "temp_store = MEMORY",  # stored content never passes through the system's temporary folder
)
_DAMAGE = ("malformed", "not a database", "corrupt", "no such table", "no such column", "disk image")
_NO_ROOM = ("disk is full", "disk i/o error")


class Connections:
    """A pool of connections. Safe to share between threads; a forked process opens its own.

    Args:
        folder: made if it does not exist, for its owner only.
        timeout: seconds to wait for another process that writes.
        read_only: whether to leave the folder as it is; then it has to exist.

    Raises:
        StoreError: the folder cannot be used.
    """

    def __init__(self, folder: Path, *, timeout: float, read_only: bool) -> None:
        self.folder, self.timeout, self.read_only = folder, timeout, read_only
        self._idle: list[sqlite3.Connection] = []
        self._mutex = threading.Lock()
        self._closed = False
        GATE.add(self)
        self._path = files.find_store(folder) if read_only else files.make_store(folder)
        self._identity = files.identity(self._path)

    def close(self) -> None:
        """Close all connections for good."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for db in idle:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def begin_anew(self) -> None:
        """Replace the locks that threads of the parent process may hold."""
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Use a connection that no other thread uses meanwhile, and that no other process ever used."""
        with GATE.connection(), self._pooled() as db:
            yield db

    @contextlib.contextmanager
    def _pooled(self) -> Iterator[sqlite3.Connection]:
        self.check_identity()
        with self._mutex:
            if self._closed:
                raise StoreError("the store is closed. Open it again: MemoryStore(folder).")
            db = self._idle.pop() if self._idle else None
        db = db or self._connect()
        pid = os.getpid()
        try:
            yield db
        finally:
            if pid == os.getpid():  # a connection of another process is left alone
                self._give_back(db)

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._mutex:
            if not self._closed:
                self._idle.append(db)
                return
        db.close()

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self.read_only else "rw"
        with self.translated():
            db = sqlite3.connect(
                f"{self._path.as_uri()}?mode={mode}",
                uri=True,
                timeout=self.timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            try:
                for pragma in _PRAGMAS:
                    db.execute(f"PRAGMA {pragma}").fetchall()
            except BaseException:
                db.close()
                raise
            return db

    def check_identity(self) -> None:
        """Notice that the file was removed or replaced: writes to the old one would be lost.

        Raises:
            StoreError: the file was removed or replaced.
        """
        if files.identity(self._path) != self._identity:
            raise StoreError(
                f"{self._path} was removed or replaced while the store was open: nothing more is kept in it. Open the store "
                "anew."
            )

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raise the store's own errors for SQLite's."""
        try:
            yield
        except sqlite3.Error as error:
            raise _as_ours(error, self.folder) from error


def _as_ours(error: sqlite3.Error, folder: Path) -> Any:
    text = str(error).lower()
    if isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text):
        return SessionBusyError(f"the store {folder} is locked ({error}). Try again.")
    if any(sign in text for sign in _NO_ROOM):
        return StoreFullError(
            f"the store {folder} cannot be written ({error}): nothing of this call was stored. Free some space."
        )
    if any(sign in text for sign in _DAMAGE) or not isinstance(error, sqlite3.OperationalError):
        return StoreDamagedError(f"the store {folder} is damaged ({error}). Restore a backup or an export.")
    return StoreError(f"the store {folder} cannot be used: {error}. Check the folder and its permissions.")
