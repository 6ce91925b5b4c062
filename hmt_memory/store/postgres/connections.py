"""The connections to one PostgreSQL store: pooled for each process, and replaced where one is lost before it was used.

A pool that connects in the background (psycopg_pool) keeps the reason of a failure to itself, and callers waiting after the
server is back.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import pq, sql

from ...errors import SessionBusyError, StoreError
from .address import Address
from .errors import as_ours, lost

MOST, _MOST_IDLE = 32, 8  # connections of one process
# How many there are at most once a thread has taken its first, its second, its third: so some thread can always go on.
_ROOM = (MOST - 8, MOST - 4, MOST)
_QUEUE_SECONDS = 60.0  # how long threads of this process wait for one another
_STANDBY = psycopg.errors.FeatureNotSupported  # what a server says that has become one
# Either side notices after 25 s that the other's machine has died; a worker's locks are free then.
_SETTINGS = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=25000"
# Whoever has waited for the writers' lock sees what was written meanwhile, whatever isolation a role is set up with.
_ISOLATION = r"-c default_transaction_isolation=read\ committed"
_USUAL = {
    "application_name": "hmt-memory",
    "client_encoding": "utf8",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_POLL_SECONDS = 0.05


class Connection(psycopg.Connection[Any]):
    """A connection that numbers the transactions it commits, and keeps ids for content."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.name, self.commits, self.pid = secrets.token_hex(12), 0, os.getpid()
        self.ids: list[int] = []
        self.thread = 0  # that uses it


class Connections:
    """A pool of connections, opened by whoever needs one. Safe to share between threads; a forked process opens its own.

    Args:
        address: of the store.
        timeout: seconds to wait for the server.
        read_only: whether the server is to refuse writes.

    Raises:
        StoreError: the server cannot be reached, or refuses the role.
    """

    def __init__(self, address: Address, *, timeout: float, read_only: bool) -> None:
        self.address, self.timeout, self.read_only = address, timeout, read_only
        self._options = self._with_settings()
        self._first = b"" if address.tenant is None else as_tenant(address.tenant)  # of what a connection is taken for
        self._idle: list[Connection] = []
        self._inherited: list[Connection] = []  # a parent process's, which it goes on using
        self._pid, self._closed = os.getpid(), False
        self._given_back, self._used = threading.Condition(), Counter[int]()  # connections of each thread
        weakref.finalize(self, _close, self._idle)
        with self.translated():
            self._idle.append(self._connect())

    def _with_settings(self) -> dict[str, Any]:
        given = psycopg.conninfo.conninfo_to_dict(self.address.url)
        path = f"-c search_path={self.address.schema}"
        read_only = "-c default_transaction_read_only=on" if self.read_only else ""
        options = f"{given.get('options') or ''} {path} {_SETTINGS} {_ISOLATION} {read_only}".strip()
        return {**_USUAL, "connect_timeout": max(2, round(self.timeout)), **given, "options": options, "autocommit": True}

    def _connect(self) -> Connection:
        connection = Connection.connect(**self._options)
        (now,) = connection.execute("SHOW synchronous_commit").fetchone() or ("on",)
        if now in ("off", "local"):  # a commit is on disk when it is acknowledged, however the server is set up
            connection.execute("SET synchronous_commit = on")
        return connection

    def close(self) -> None:
        """Close all connections for good."""
        self._closed = True
        _close(self._idle)

    def _begin_anew(self) -> None:
        """Leave the parent process's connections alone, if this is a forked one."""
        if self._pid != os.getpid():
            self._pid, self._given_back, self._used = os.getpid(), threading.Condition(), Counter()
            self._inherited += self._idle
            self._idle.clear()

    def _take(self) -> Connection:
        """Take a connection that nobody else uses; give it back with `_give`."""
        if self._closed:
            raise StoreError("the store is closed. Open it again: MemoryStore(url).")
        self._begin_anew()
        thread = self._queue()
        try:
            connection = self._from_pool() or self._connect()
        except BaseException:
            self._leave(thread)
            raise
        connection.thread = thread
        return connection

    def _from_pool(self) -> Connection | None:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return None

    def _queue(self) -> int:
        """Wait until this thread may take one more connection. Returns the thread's number."""
        thread = threading.get_ident()
        with self._given_back:
            room = _ROOM[min(self._used[thread], len(_ROOM) - 1)]
            if not self._given_back.wait_for(lambda: self._used.total() < room, max(self.timeout, _QUEUE_SECONDS)):
                raise SessionBusyError(
                    f"other threads of this process keep its {MOST} connections to {self.address.shown}. Try again, or let "
                    "fewer threads work at once."
                )
            self._used[thread] += 1
        return thread

    def _leave(self, thread: int) -> None:
        """Let the threads that wait know of a connection fewer."""
        with self._given_back:
            self._used -= Counter([thread])
            self._given_back.notify_all()

    def _give(self, connection: Connection) -> None:
        """Give a connection back, outside of any transaction."""
        if connection.pid != os.getpid():
            return  # it is another process's
        try:
            roll_back(connection)
            if self._closed or len(self._idle) >= _MOST_IDLE or not is_idle(connection):
                connection.close()
            else:
                self._idle.append(connection)
        finally:
            self._leave(connection.thread)

    @contextlib.contextmanager
    def begun(self, statements: str) -> Iterator[Connection]:
        """Use a connection on which `statements` were run. One that was lost before is replaced, until `timeout`.

        Raises:
            StoreInterruptedError: there is no server.
            SessionBusyError: all connections are in use, or a lock is.
        """
        deadline = time.monotonic() + self.timeout
        while (connection := self._with(statements.encode(), deadline)) is None:
            time.sleep(_POLL_SECONDS)
        try:
            yield connection
        finally:
            self._give(connection)

    def _with(self, statements: bytes, deadline: float) -> Connection | None:
        """Return a connection on which statements were run; None if there was none before the deadline."""
        connection = None
        try:
            connection = self._take()
            connection.execute(self._first + statements, prepare=False)
        except BaseException as error:
            gone = connection is None or lost(connection) or isinstance(error, _STANDBY)
            if connection is not None:
                if gone or may_hold(error):
                    connection.close()
                self._give(connection)
            if not isinstance(error, psycopg.Error):
                raise
            if gone and time.monotonic() < deadline:
                return None
            raise as_ours(error, self.address.shown, lost=gone) from error
        return connection

    @contextlib.contextmanager
    def translated(self, connection: Connection | None = None) -> Iterator[None]:
        """Raise the store's own errors for the driver's."""
        try:
            yield
        except psycopg.Error as error:
            gone = connection is not None and lost(connection)
            raise as_ours(error, self.address.shown, lost=gone) from error


def _close(connections: list[Connection]) -> None:
    """Close the connections that are this process's."""
    while connections:
        if (connection := connections.pop()).pid == os.getpid():
            connection.close()


def as_tenant(role: str) -> bytes:
    """Return the statement that makes a connection a tenant's, whoever used it before."""
    return sql.SQL("SET ROLE {}; ").format(sql.Identifier(role)).as_bytes()


def may_hold(error: BaseException) -> bool:
    """Return whether a connection on which a lock was asked for may hold it, in spite of an error: rolling back keeps locks."""
    return not isinstance(error, psycopg.errors.LockNotAvailable)


def is_idle(connection: Connection) -> bool:
    """Return whether a connection can be used for anything."""
    return connection.info.transaction_status == pq.TransactionStatus.IDLE


def roll_back(connection: Connection) -> None:
    """End a transaction that is open without making its changes."""
    if connection.info.transaction_status not in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN):
        with contextlib.suppress(psycopg.Error):
            connection.execute("ROLLBACK", prepare=False)
