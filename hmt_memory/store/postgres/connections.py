"""The connections to one PostgreSQL store: pooled for each process, and replaced where one is lost before it was used."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import pq
from psycopg_pool import ConnectionPool, PoolTimeout

from ...errors import SessionBusyError, StoreError, StoreInterruptedError
from .address import Address
from .errors import as_ours, first_line, lost

MOST = 32  # connections of one process
# A worker whose machine has died is noticed by the server after 25 s, and its locks are free.
_SETTINGS = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
_POLL_SECONDS = 0.05


class Connection(psycopg.Connection[Any]):
    """A connection that numbers the transactions it commits, and keeps ids for content."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.name, self.commits, self.pid = secrets.token_hex(12), 0, os.getpid()
        self.ids: list[int] = []


class Connections:
    """A pool of connections. Safe to share between threads; a forked process opens its own.

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
        self._pools: dict[int, ConnectionPool[Connection]] = {}  # by process: a forked one leaves its parent's alone
        self._closed = False
        with self.translated():
            self._connect().close()  # says why, if that is impossible

    def _with_settings(self) -> dict[str, Any]:
        given = psycopg.conninfo.conninfo_to_dict(self.address.url)
        path = f"-c search_path={self.address.schema}"
        read_only = "-c default_transaction_read_only=on" if self.read_only else ""
        options = f"{given.get('options') or ''} {path} {_SETTINGS} {read_only}".strip()
        usual = {"application_name": "hmt-memory", "connect_timeout": max(2, round(self.timeout)), "client_encoding": "utf8"}
        return {**usual, **given, "options": options, "autocommit": True}

    def _connect(self) -> Connection:
        return Connection.connect(**self._options)

    def _opened(self) -> ConnectionPool[Connection]:
        return ConnectionPool(
            kwargs=self._options,
            connection_class=Connection,
            min_size=0,
            max_size=MOST,
            configure=_configured,
            reconnect_timeout=self.timeout,
            name=f"hmt-memory {self.address.shown}",
            open=True,
        )

    def _pool(self) -> ConnectionPool[Connection]:
        """Return the pool of this process."""
        pool = self._pools.get(os.getpid())
        if pool is None:
            new = self._opened()
            pool = self._pools.setdefault(os.getpid(), new)
            if pool is not new:  # another thread was first
                new.close()
        return pool

    def close(self) -> None:
        """Close all connections for good."""
        self._closed = True
        if (pool := self._pools.pop(os.getpid(), None)) is not None:
            pool.close()

    def take(self) -> Connection:
        """Take a connection that nobody else uses; give it back with `give`.

        Raises:
            StoreError: the server cannot be reached.
            SessionBusyError: all connections are in use.
        """
        if self._closed:
            raise StoreError("the store is closed. Open it again: MemoryStore(url).")
        try:
            return self._pool().getconn(timeout=self.timeout)
        except PoolTimeout as error:
            shown = self.address.shown
            try:
                self._connect().close()
            except psycopg.Error as reason:
                raise StoreInterruptedError(
                    f"{shown} cannot be reached ({first_line(reason)}): nothing of this was stored. Try again."
                ) from error
            raise SessionBusyError(f"all {MOST} connections to {shown} are in use. Try again.") from error

    def give(self, connection: Connection) -> None:
        """Give a connection back, outside of any transaction."""
        pool = self._pools.get(os.getpid())
        if connection.pid != os.getpid():
            return  # it is another process's
        roll_back(connection)
        if pool is None:
            connection.close()
        else:
            pool.putconn(connection)

    @contextlib.contextmanager
    def begun(self, statements: str) -> Iterator[Connection]:
        """Use a connection on which `statements` were run. One that was lost before is replaced, until `timeout`."""
        deadline = time.monotonic() + self.timeout
        while (connection := self._with(statements, deadline)) is None:
            time.sleep(_POLL_SECONDS)
        try:
            yield connection
        finally:
            self.give(connection)

    def _with(self, statements: str, deadline: float) -> Connection | None:
        """Return a connection on which statements were run; None if it turned out to be lost, before the deadline."""
        connection = self.take()
        try:
            connection.execute(statements.encode(), prepare=False)
        except psycopg.Error as error:
            standby = isinstance(error, psycopg.errors.FeatureNotSupported)  # the server has become one
            gone = standby or lost(connection)
            if standby:
                connection.close()
            self.give(connection)
            if gone and time.monotonic() < deadline:
                return None
            raise as_ours(error, self.address.shown, lost=gone) from error
        except BaseException:
            self.give(connection)
            raise
        return connection

    @contextlib.contextmanager
    def translated(self, connection: Connection | None = None) -> Iterator[None]:
        """Raise the store's own errors for the driver's."""
        try:
            yield
        except psycopg.Error as error:
            gone = connection is not None and lost(connection)
            raise as_ours(error, self.address.shown, lost=gone) from error


def _configured(connection: Connection) -> None:
    """Make sure that a commit is on disk when it is acknowledged, however the server is set up."""
    (now,) = connection.execute("SHOW synchronous_commit").fetchone() or ("on",)
    if now in ("off", "local"):
        connection.execute("SET synchronous_commit = on")


def roll_back(connection: Connection) -> None:
    """End a transaction that is open without making its changes."""
    if connection.info.transaction_status not in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN):
        with contextlib.suppress(psycopg.Error):
            connection.execute("ROLLBACK", prepare=False)
