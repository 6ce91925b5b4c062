"""One SQLite file in one folder: connections, transactions, locks, wiping. Knows no table but its schema's version.

WAL with synchronous=FULL: what a transaction has written survives the process and the power. Every write and every
checkpoint happens under one file lock, so that no two processes ever write at the same instant: SQLite before 3.51.3 can
damage a WAL database otherwise. Readers take no lock and never wait.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import SessionBusyError, StoreDamagedError, StoreError
from . import migrations

FILE = "memory.db"
SQLITE = sqlite3.sqlite_version
_CHECKPOINT_BYTES = 4 << 20  # a WAL above this is copied back after the next write
_POLL_SECONDS = 0.005
_DAMAGE = ("malformed", "not a database", "corrupt", "no such table", "no such column", "disk image")
_NO_ROOM = ("disk is full", "disk i/o error")


def default_folder() -> Path:
    """Where sessions are kept unless said: $HMT_STORE, else $XDG_DATA_HOME/hmt-memory, else ~/.local/share/hmt-memory."""
    if chosen := os.environ.get("HMT_STORE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "hmt-memory"


class Database:
    """A folder's database. Safe to share between threads; a forked process opens its own connections.

    Args:
        folder: made if it does not exist, readable by its owner only.
        timeout: seconds to wait for another process that writes.

    Raises:
        StoreError: the folder cannot be used, or holds something else. SessionBusyError: another process kept writing.
    """

    def __init__(self, folder: Path, *, timeout: float) -> None:
        self.folder, self.timeout = folder, timeout
        self._pid = os.getpid()
        self._idle: list[sqlite3.Connection] = []
        self._inherited: list[list[sqlite3.Connection]] = []  # a parent process's: never used, never closed
        self._mutex, self._write_mutex = threading.Lock(), threading.Lock()  # of the pool; of writers, who queue here
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "locks").mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be a store: {error.strerror}. Choose another folder.") from error
        self._migrate()

    def _migrate(self) -> None:
        with self._connection() as db, self._translated():
            ready = not migrations.pending(db) and db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        if ready:
            return
        with self.exclusive(), self._connection() as db, self._translated():
            db.execute("PRAGMA journal_mode = WAL").fetchall()
            db.execute("BEGIN IMMEDIATE")
            try:
                migrations.migrate(db)
                db.execute("COMMIT")
            except BaseException:
                _roll_back(db)
                raise

    # --- transactions -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A consistent view of all rows as of now. Fetch what is needed and leave: an open view keeps the WAL growing."""
        with self._connection() as db, self._translated():
            db.execute("BEGIN")
            try:
                yield db
            finally:
                _roll_back(db)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is durable when the block ends, and never was if it raises.

        Raises:
            SessionBusyError: others wrote for longer than `timeout`. StoreError: the disk is full or failing.
        """
        with self.exclusive(), self._connection() as db, self._translated():
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                _roll_back(db)
                raise
            self._checkpoint_if_large(db)

    def wipe(self) -> None:
        """Rewrite the file without its free space and empty the WAL: deleted bytes are then in no file.

        Raises:
            SessionBusyError: another process kept reading the old bytes. StoreError: no room for the rewriting.
        """
        deadline = time.monotonic() + self.timeout
        with self.exclusive(), self._connection() as db, self._translated():
            db.execute("VACUUM")
            while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > deadline:
                    raise SessionBusyError(f"another process has been reading for {self.timeout:g} s.")
                time.sleep(_POLL_SECONDS)

    def lock(self, name: str, *, timeout: float | None = None) -> FileLock:
        """A lock between processes, held by one `with` block at a time; `filelock.Timeout` after `timeout` seconds."""
        wait = self.timeout if timeout is None else timeout
        return FileLock(self.folder / "locks" / f"{name}.lock", timeout=wait, poll_interval=_POLL_SECONDS)

    def problems(self) -> list[str]:
        """What SQLite itself finds wrong with the file; takes time in proportion to its size."""
        with self.reading() as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check").fetchall()]
            foreign = db.execute("PRAGMA foreign_key_check").fetchall()
        problems = [] if found == ["ok"] else [f"database: {line}" for line in found]
        return problems + [f"database: a row of {table} refers to a {other} that is gone" for table, _, other, _ in foreign]

    def close(self) -> None:
        """Close all connections. The store must not be used afterwards."""
        with self._mutex:
            self._closed = True
            if self._pid == os.getpid():
                for db in self._idle:
                    with contextlib.suppress(sqlite3.Error):
                        db.close()
                self._idle = []

    # --- connections ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile, and that no other process ever used."""
        self._leave_parent()
        with self._mutex:
            if self._closed:
                raise StoreError("the store is closed. Open it again: MemoryStore(folder).")
            db = self._idle.pop() if self._idle else None
        db = db or self._connect()
        try:
            yield db
        finally:
            with self._mutex:
                reuse = not self._closed and self._pid == os.getpid()
                if reuse:
                    self._idle.append(db)
            if not reuse:
                db.close()

    def _leave_parent(self) -> None:
        if self._pid != os.getpid():
            self._inherited.append(self._idle)
            self._mutex, self._write_mutex = threading.Lock(), threading.Lock()
            self._idle, self._pid = [], os.getpid()

    def _connect(self) -> sqlite3.Connection:
        with self._translated():
            db = sqlite3.connect(
                self.folder / FILE, timeout=self.timeout, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            try:
                for pragma in (
                    "synchronous = FULL",
                    "wal_autocheckpoint = 0",
                    "foreign_keys = ON",
                    "secure_delete = ON",
                    "trusted_schema = OFF",
                ):
                    db.execute(f"PRAGMA {pragma}").fetchall()
            except BaseException:
                db.close()
                raise
            return db

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other thread or process writes or checkpoints inside; the block itself would wait for itself."""
        self._leave_parent()
        with self._write_mutex:
            try:
                with self.lock("store"):
                    yield
            except Timeout as error:
                raise SessionBusyError(
                    f"another process has been writing to {self.folder} for {self.timeout:g} s. Try again, or open the store "
                    "with a longer timeout."
                ) from error

    def _checkpoint_if_large(self, db: sqlite3.Connection) -> None:
        """Copy the WAL back. What was just committed is durable already, so a failure here only waits for the next time."""
        with contextlib.suppress(OSError, sqlite3.Error):
            if (self.folder / f"{FILE}-wal").stat().st_size > _CHECKPOINT_BYTES:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _as_ours(error, self.folder) from error


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")


def _as_ours(error: sqlite3.Error, folder: Path) -> Any:
    text = str(error).lower()
    if isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text):
        return SessionBusyError(f"the store {folder} is locked ({error}). Try again.")
    if any(sign in text for sign in _NO_ROOM):
        return StoreError(f"the store {folder} cannot be written ({error}): nothing of this call was stored. Free some space.")
    if any(sign in text for sign in _DAMAGE) or not isinstance(error, sqlite3.OperationalError):
        return StoreDamagedError(f"the store {folder} is damaged ({error}). Restore a backup or an export.")
    return StoreError(f"the store {folder} cannot be used: {error}. Check the folder and its permissions.")
