"""One SQLite file in one folder: transactions, locks, the log. Knows no table, only the schema's version.

WAL with synchronous=FULL: a committed transaction survives the process and the power. Every write and every checkpoint happens
under one file lock, so that no two processes ever write at the same instant: SQLite before 3.51.3 can damage a WAL database
otherwise. Readers take no lock and never wait.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from ...errors import SessionBusyError, StoreError, StoreFullError
from ...files import open_for_owner
from ..backend import Capability
from ..per_thread import PerThread
from ..sql import migrations
from ..transaction import Transaction
from . import files
from .connections import Connections
from .transaction import SqliteTransaction

T = TypeVar("T")
SQLITE = sqlite3.sqlite_version
_CHECKPOINT_BYTES = 4 << 20  # a WAL above this is copied back after the next write
_LARGEST_LOG = 16 << 20  # above this, a writer waits for readers to leave the log
_PATIENCE_SECONDS = 0.05  # how long writers wait for readers at a time
_POLL_SECONDS = 0.005


class Database(Connections):
    """A folder's database. Safe to share between threads; a forked process opens its own connections.

    Args:
        folder: made if it does not exist, for its owner only.
        timeout: seconds to wait for another process that writes.
        read_only: whether to leave the folder as it is; then it has to exist.

    Raises:
        StoreError: the folder cannot be used, or holds something else.
        SessionBusyError: another process kept writing.
    """

    capabilities = frozenset({Capability.ERASES_ROWS, Capability.ERASES_BYTES, Capability.GIVES_ROOM_BACK})

    def __init__(self, folder: Path, *, timeout: float, read_only: bool = False) -> None:
        folder = folder.absolute()  # whatever folder the process works in later
        super().__init__(folder, timeout=timeout, read_only=read_only)
        self.place, self.cache = str(folder), folder / "indexes"
        self.former_cache: Path | None = None
        self._write_mutex = threading.Lock()
        self._view = PerThread[SqliteTransaction]()
        self._migrate()
        if not read_only:
            self._drop_unused_locks()

    def _migrate(self) -> None:
        with self.connection() as db, self.translated():
            pending = migrations.pending(SqliteTransaction(db))
            ready = not pending and db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        if ready:
            return
        if self.read_only:
            raise StoreError(
                f"an older hmt-memory wrote {self.folder}. Open it once without read_only, to bring it up to date."
            )
        with self.exclusive(), self.connection() as db, self.translated():
            db.execute("PRAGMA journal_mode = WAL").fetchall()
            _in_transaction(db, migrations.migrate)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextlib.contextmanager
    def reading(self) -> Iterator[SqliteTransaction]:
        """Open a consistent view of all rows as of now. Inside it, the same thread gets the same view again.

        Fetch what is needed and leave: an open view keeps the WAL growing.
        """
        if (open_view := self._view.get()) is not None:
            yield open_view
            return
        with self.connection() as db, self.translated():
            db.execute("BEGIN")
            view = SqliteTransaction(db)
            self._view.set(view)
            try:
                yield view
            finally:
                self._view.set(None)
                _roll_back(db)

    @contextlib.contextmanager
    def writing(self) -> Iterator[SqliteTransaction]:
        """Open a transaction that is durable when the block ends, and never was if it raises.

        Raises:
            SessionBusyError: others wrote for longer than `timeout`.
            StoreFullError: the disk is full.
            StoreError: the transaction fails.
        """
        if self.read_only:
            raise StoreError(f"the store {self.folder} was opened read-only. Open it without read_only to change it.")
        with self.exclusive(), self.connection() as db, self.translated():
            db.execute("BEGIN IMMEDIATE")
            try:
                yield SqliteTransaction(db)
                db.execute("COMMIT")
            except BaseException:
                _roll_back(db)
                raise
            self.check_identity()
            self._checkpoint_if_large(db)

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one consistent view."""
        with self.reading() as db:
            return work(db)

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction.

        Raises the errors of `writing`.
        """
        with self.writing() as db:
            return work(db)

    def let_others_write(self) -> None:
        """Pause between two transactions of one long work, long enough for a waiting writer to notice."""
        time.sleep(1.2 * _POLL_SECONDS)

    def erasing(self, work: Callable[[Transaction], T]) -> T:
        """Run `work`, which makes room, in a transaction. If the disk is full, the room kept for this is used.

        Raises the errors of `writing`.
        """
        try:
            return self.write(work)
        except StoreFullError:
            files.spend_reserve(self.folder)
            return self.write(work)

    def again(self, work: Callable[[], T]) -> T:
        """Run `work`: nobody but this process ends its transactions."""
        return work()

    def empty_log(self) -> None:
        """Copy the WAL back and empty it: overwritten bytes are then in no file. Others may write meanwhile.

        Raises:
            SessionBusyError: a reader kept the old bytes for longer than `timeout`.
        """
        deadline = time.monotonic() + self.timeout
        while not self._emptied():
            if time.monotonic() > deadline:
                raise SessionBusyError(f"somebody has been reading for {self.timeout:g} s.")
            time.sleep(_POLL_SECONDS)

    def _emptied(self) -> bool:
        with self.exclusive(), self.connection() as db, self.translated():
            return _checkpoint(db, "TRUNCATE", wait_seconds=_PATIENCE_SECONDS)

    def rewrite(self) -> None:
        """Rewrite the file without empty content, to give its room back to the disk. Nobody can write meanwhile.

        Rows move where others are dropped and leave copies, which are gone when this is done: nothing is erased in between.
        Takes about 12 seconds a gigabyte, and as much room again in this folder while it lasts.

        Raises:
            SessionBusyError: others wrote for longer than `timeout`.
            StoreFullError: there is no room for the new file.
        """
        with self.exclusive(), self.connection() as db, self.translated():
            _in_transaction(db, SqliteTransaction.drop_vacant)
            folder = str(self._path.parent).replace("'", "''")
            db.execute("PRAGMA temp_store = FILE").fetchall()
            db.execute(f"PRAGMA temp_store_directory = '{folder}'").fetchall()
            try:
                db.execute("VACUUM")
            finally:
                db.execute("PRAGMA temp_store_directory = ''").fetchall()
                db.execute("PRAGMA temp_store = MEMORY").fetchall()
        self.empty_log()

    @contextlib.contextmanager
    def lock(self, name: str, *, timeout: float | None = None) -> Iterator[None]:
        """Hold a lock that only one block of all threads and processes holds at a time.

        Args:
            name: of the lock.
            timeout: seconds to wait; None: as long as for another writer.

        Raises:
            SessionBusyError: somebody else holds it.
        """
        self.check_identity()
        wait = self.timeout if timeout is None else timeout
        with self._held(FileLock(self._lock_path(name), timeout=wait, poll_interval=_POLL_SECONDS, mode=0o600), wait):
            yield

    @contextlib.contextmanager
    def _held(self, lock: FileLock, wait: float) -> Iterator[None]:
        try:
            lock.acquire()
        except Timeout as error:
            raise SessionBusyError(f"another process has been at it for {wait:g} s. Try again.") from error
        try:
            yield
        finally:
            lock.release()

    def forget_lock(self, name: str) -> None:
        """Remove the file of a lock that nobody will ask for again."""
        self._lock_path(name).unlink(missing_ok=True)

    def _lock_path(self, name: str) -> Path:
        return self.folder / "locks" / f"{name}.lock"

    def _drop_unused_locks(self) -> None:
        """Remove the files of locks that nobody holds. They are made again when needed."""
        for path in (self.folder / "locks").glob("*.lock"):
            if path != self._lock_path("store"):
                with contextlib.suppress(Timeout, OSError), FileLock(path, timeout=0, mode=0o600):
                    path.unlink()

    def copy_to(self, folder: Path) -> None:
        """Write a copy of the database, as of one moment, into a folder. Others may write meanwhile.

        Raises:
            StoreFullError: there is no room for the copy.
        """
        path = folder / files.DATABASE
        os.close(open_for_owner(path))
        with self.connection() as db, self.translated(), contextlib.closing(sqlite3.connect(path)) as copy:
            db.backup(copy)

    def size(self) -> int:
        """Return the number of bytes that the database takes on the disk."""
        return self._path.stat().st_size

    def problems(self) -> list[str]:
        """Return what SQLite itself finds wrong with the file. Takes time in proportion to its size."""
        with self.reading() as db:
            lines = [str(row[0]) for row in db.all("PRAGMA integrity_check")]
            foreign = db.all("PRAGMA foreign_key_check")
        problems = [] if lines == ["ok"] else [f"database: {line}" for line in lines]
        return problems + [f"database: a row of {table} refers to a {other} that is gone" for table, _, other, _ in foreign]

    def close(self) -> None:
        """Close all connections. The store must not be used afterwards."""
        super().close()
        if not self.read_only:
            self._drop_unused_locks()

    def begin_anew(self) -> None:
        """Replace the locks that threads of the parent process may hold."""
        super().begin_anew()
        self._write_mutex = threading.Lock()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep every other thread and process from writing and checkpointing inside. The block must not ask for it again."""
        self.check_identity()
        with self._write_mutex:
            lock = FileLock(self._lock_path("store"), timeout=self.timeout, poll_interval=_POLL_SECONDS, mode=0o600)
            try:
                lock.acquire()
            except Timeout as error:
                raise SessionBusyError(
                    f"another process has been writing to {self.folder} for {self.timeout:g} s. Try again, or open the store "
                    "with a longer timeout."
                ) from error
            try:
                yield
            finally:
                lock.release()

    def _checkpoint_if_large(self, db: sqlite3.Connection) -> None:
        """Copy the WAL back. The commit is durable already, so a failure here only waits for the next time.

        Readers that follow one another closely keep a passive copy from ever ending the log; a large one waits for them.
        """
        with contextlib.suppress(OSError, sqlite3.Error):
            size = files.log_of(self._path).stat().st_size
            if size > _LARGEST_LOG:
                _checkpoint(db, "TRUNCATE", wait_seconds=_PATIENCE_SECONDS)
            elif size > _CHECKPOINT_BYTES:
                _checkpoint(db, "PASSIVE", wait_seconds=0)


def _checkpoint(db: sqlite3.Connection, mode: str, *, wait_seconds: float) -> bool:
    """Copy the WAL back into the database. Returns whether it was copied to its end."""
    (before,) = db.execute("PRAGMA busy_timeout").fetchone()
    db.execute(f"PRAGMA busy_timeout = {int(wait_seconds * 1000)}").fetchall()
    try:
        return not db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0]
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            return False
        raise
    finally:
        db.execute(f"PRAGMA busy_timeout = {before}").fetchall()


def _in_transaction(db: sqlite3.Connection, work: Callable[[SqliteTransaction], object]) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        work(SqliteTransaction(db))
        db.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        raise


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
