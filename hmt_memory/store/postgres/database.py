"""One schema of a PostgreSQL database: transactions, locks, lost connections. Knows no table but its own.

Writers take turns by one lock for each store, as in the embedded database, so no transaction meets another's half-done work and
none fails for want of an order. Readers take no lock. A lock and what is written under it share one connection: whoever has
lost the lock cannot write.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import psycopg

from ...errors import OutcomeUnknownError, SessionBusyError, StoreError, StoreInterruptedError
from ..backend import Capability
from ..per_thread import PerThread
from ..sql import copying, migrations
from ..transaction import Transaction
from .address import Address
from .connections import Connection, Connections, may_hold, roll_back
from .errors import lost
from .tenants import check_owns_tables, owns_tables, tenant_of
from .transaction import CONTENT, PostgresTransaction

T = TypeVar("T")
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# By this a transaction can be asked about when its connection is gone.
_NOTE = (
    "INSERT INTO commits (connection, number) VALUES (%s, %s)"
    " ON CONFLICT ON CONSTRAINT commits_pkey DO UPDATE SET number = excluded.number, at = now()"
)
_STALLED = "60s"  # a worker that stops in the middle of a transaction keeps others waiting no longer
_ASKING_SECONDS = 90.0  # how long a lost transaction is asked about: longer than a server takes to notice
_FORGET_AFTER = "7 days"  # connections that are no more
_POLL_SECONDS = 0.1


class Database(Connections):
    """A store in PostgreSQL. Safe to share between threads; a forked process opens its own connections.

    Args:
        url: `postgresql://host/database`, with `?schema=name` for another schema than hmt_memory, which is made.
        timeout: seconds to wait for another writer, and for the server.
        read_only: whether to change nothing; then the store has to exist.
        caches: folder of this machine for what can be made again.
        embedded: opens an embedded store, for copies.

    Raises:
        StoreError: the server cannot be reached, or the schema holds something else.
        SessionBusyError: another process kept writing.
    """

    def __init__(
        self, url: str, *, timeout: float, read_only: bool = False, caches: Path, embedded: Callable[[Path], copying.Store]
    ) -> None:
        super().__init__(Address.of(url), timeout=timeout, read_only=read_only)
        self.place, self._embedded = self.address.shown, embedded
        self._tenant, self.capabilities = "", frozenset({Capability.ERASES_ROWS, Capability.MANY_HOSTS})
        self._view, self._held = PerThread[PostgresTransaction](), PerThread[_Held]()
        try:
            self._migrate()
            with self.reading() as db:
                self._settle_tenant(db)
                common = caches / db.identity()
            own = common.with_name(f"{common.name}-{_digest(self._tenant, 6).hex()}")
            self.cache = own if self._tenant else common
            self.former_cache: Path | None = common if self._tenant else None
            if not read_only:
                self._tidy()
        except BaseException:
            self.close()
            raise

    def _settle_tenant(self, db: PostgresTransaction) -> None:
        """Find out whose rows these are, and what may be done with them.

        Raises:
            StoreError: the role would see the rows of other tenants, too.
        """
        self._tenant = tenant_of(db, self.address.tenant)
        if self._tenant:
            self.capabilities |= {Capability.SEPARATES_TENANTS}
        if owns_tables(db):
            self.capabilities |= {Capability.GIVES_ROOM_BACK}

    def _tidy(self) -> None:
        with self.begun(f"DELETE FROM commits WHERE at < now() - interval '{_FORGET_AFTER}'"):
            pass

    def _migrate(self) -> None:
        with self.begun(_READ) as connection, self.translated(connection):
            db = PostgresTransaction(connection)
            if not migrations.pending(db):
                return
            if self.read_only:
                raise StoreError(f"{self.place} holds no store of this version. Open it once without read_only.")
            if db.version():
                check_owns_tables(db)
        with self._committed() as connection:
            db = PostgresTransaction(connection)
            db.prepare(self.address.schema, secrets.token_hex(12))
            migrations.migrate(db)
            db.clean_at_once()

    @contextlib.contextmanager
    def reading(self) -> Iterator[PostgresTransaction]:
        """Open a consistent view of all rows as of now. Inside it, the same thread gets the same view again.

        Fetch what is needed and leave: an open view keeps erased rows in the server's pages.
        """
        if (open_view := self._view.get()) is not None:
            yield open_view
            return
        with self.begun(_READ) as connection, self.translated(connection):
            view = PostgresTransaction(connection)
            self._view.set(view)
            try:
                yield view
            finally:
                self._view.set(None)

    @contextlib.contextmanager
    def writing(self) -> Iterator[PostgresTransaction]:
        """Open a transaction that is durable when the block ends, and never was if it raises.

        Raises:
            SessionBusyError: others wrote for longer than `timeout`.
            StoreFullError: the server's disk is full.
            StoreInterruptedError: the server ended it, or is gone; nothing was stored.
            OutcomeUnknownError: the server is gone, and whether it was stored cannot be found out.
            StoreError: the transaction fails.
        """
        if self.read_only:
            raise StoreError(f"{self.place} was opened read-only. Open it without read_only to change it.")
        with self._committed() as connection, connection.pipeline():
            yield PostgresTransaction(connection)
            connection.commits += 1
            connection.execute(_NOTE, (connection.name, connection.commits))

    @contextlib.contextmanager
    def _committed(self) -> Iterator[Connection]:
        """Hold the writers' lock in a transaction, and commit it."""
        wait = f"SET LOCAL lock_timeout = {_milliseconds(self.timeout)}"
        stalled = f"SET LOCAL idle_in_transaction_session_timeout = '{_STALLED}'"
        begin = f"BEGIN READ WRITE; {wait}; {stalled}; SELECT pg_advisory_xact_lock({self._key('store')})"
        with self._of_this_thread(begin) as connection, self.translated(connection):
            try:
                yield connection
                self._commit(connection)
            except BaseException:
                roll_back(connection)
                raise

    @contextlib.contextmanager
    def _of_this_thread(self, begin: str) -> Iterator[Connection]:
        """Begin a transaction on the connection of this thread's locks, or on any."""
        held = self._held.get()
        if held is None:
            with self.begun(begin) as connection:
                yield connection
            return
        with self.translated(held.connection):
            try:
                held.connection.execute(begin.encode(), prepare=False)
            except BaseException as error:
                if may_hold(error):
                    held.connection.close()
                roll_back(held.connection)
                raise
        yield held.connection

    def _commit(self, connection: Connection) -> None:
        """Commit, and if the connection is lost over it, find out whether that was done."""
        try:
            connection.execute("COMMIT")
        except psycopg.OperationalError as error:
            asked = lost(connection) and connection.commits > 0  # else the tables were being made
            if not asked or not self._has_committed(connection.name, connection.commits, error):
                raise

    def _has_committed(self, name: str, number: int, cause: psycopg.Error) -> bool:
        """Return whether a lost transaction was committed. The writers' lock is free only when it has ended.

        Raises:
            OutcomeUnknownError: nobody says.
        """
        deadline = time.monotonic() + max(self.timeout, _ASKING_SECONDS)
        wait = f"SET LOCAL lock_timeout = {_milliseconds(_ASKING_SECONDS)}"
        begin = f"BEGIN; {wait}; SELECT pg_advisory_xact_lock({self._key('store')})"
        while True:
            try:
                with self.begun(begin) as connection, self.translated(connection):
                    last = PostgresTransaction(connection).one("SELECT number FROM commits WHERE connection = ?", (name,))
                    return last is not None and last[0] == number
            except (StoreError, SessionBusyError) as error:
                if time.monotonic() > deadline:
                    raise OutcomeUnknownError(
                        f"the connection to {self.place} was lost while a transaction was ended ({cause}), and no server says "
                        "whether it was stored. Look before you try again."
                    ) from error
                time.sleep(_POLL_SECONDS)

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one consistent view; in another one if the connection is lost meanwhile."""

        def seen() -> T:
            with self.reading() as db:
                return work(db)

        return self.again(seen)

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction; again if the server ended it and nothing was stored.

        Raises the errors of `writing`.
        """

        def written() -> T:
            with self.writing() as db:
                return work(db)

        return self.again(written)

    erasing = write

    def again(self, work: Callable[[], T]) -> T:
        """Run `work`, and once more as long as the server ends it with nothing stored, until `timeout`.

        Work under a lock or in a view is not repeated: what it rests on may have changed by then.
        """
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return work()
            except StoreInterruptedError:
                if self._held.get() is not None or self._view.get() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep every other thread and process from writing inside."""
        with self._locked("store", self.timeout):
            yield

    @contextlib.contextmanager
    def lock(self, name: str, *, timeout: float | None = None) -> Iterator[None]:
        """Hold a lock that only one block of all threads, processes and machines holds at a time.

        It is free when this process or its connection ends.

        Args:
            name: of the lock.
            timeout: seconds to wait; None: as long as for another writer.

        Raises:
            SessionBusyError: somebody else holds it.
        """
        with self._locked(f"lock {name}", self.timeout if timeout is None else timeout):
            yield

    @contextlib.contextmanager
    def _locked(self, name: str, wait: float) -> Iterator[None]:
        held = self._held.get()
        if held is not None and name in held.names:
            raise SessionBusyError("this thread holds the lock already.")
        key = self._key(name)
        take = f"BEGIN; SET LOCAL lock_timeout = {_milliseconds(wait)}; SELECT pg_advisory_lock({key}); COMMIT"
        with self._of_this_thread(take) as connection:
            mine = held or _Held(connection, [])
            mine.names.append(name)
            self._held.set(mine)
            try:
                yield
            finally:
                mine.names.remove(name)
                if not mine.names:
                    self._held.set(None)
                _unlock(connection, key)

    def _key(self, name: str) -> int:
        whose = self.address.schema + (self._tenant and f"/{self._tenant}")
        return int.from_bytes(_digest(f"hmt-memory {whose} {name}", 8), "big", signed=True)

    def forget_lock(self, name: str) -> None:
        """Do nothing: a lock that nobody holds leaves no trace."""

    def let_others_write(self) -> None:
        """Do nothing: the server lets those who wait have their turn."""

    def empty_log(self) -> None:
        """Do nothing: the server's log is its operator's."""

    def rewrite(self) -> None:
        """Rewrite the tables of content without what was deleted. Nobody can use them meanwhile."""
        wait = f"SET lock_timeout = {_milliseconds(self.timeout)}"
        with self.exclusive(), self.begun(wait) as connection, self.translated(connection):
            try:
                connection.execute(f"VACUUM (FULL) {', '.join(CONTENT)}".encode(), prepare=False)
            finally:
                with contextlib.suppress(psycopg.Error):
                    connection.execute("RESET lock_timeout")

    def copy_to(self, folder: Path) -> None:
        """Write everything, as of one moment, as an embedded store into a folder. Others may write meanwhile."""
        copy = self._embedded(folder)
        try:
            with self.reading() as db, copy.writing() as target:
                copying.copy(db, target)
        finally:
            copy.close()

    def size(self) -> int:
        """Return the number of bytes that the tables and their indexes take."""
        query = "SELECT sum(pg_total_relation_size(relid)) FROM pg_statio_user_tables WHERE schemaname = current_schema()"
        with self.reading() as db:
            return int(db.one(query)[0])

    def problems(self) -> list[str]:
        """Return what the server says of itself: settings that lose what was acknowledged, and pages found damaged."""
        with self.reading() as db:
            unsafe = [name for name in ("fsync", "full_page_writes") if db.one(f"SHOW {name}")[0] == "off"]
            query = "SELECT coalesce(checksum_failures, 0) FROM pg_stat_database WHERE datname = current_database()"
            (damaged,) = db.one(query)
        problems = [f"database: {name} is off, so a crash of the server loses what was acknowledged" for name in unsafe]
        return problems + ([f"database: {damaged} pages do not fit their checksums"] if damaged else [])


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


class _Held(NamedTuple):
    """The locks of one thread, and the connection that they belong to."""

    connection: Connection
    names: list[str]


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _unlock(connection: Connection, key: int) -> None:
    """Release a lock. A connection that cannot do so is closed, which releases it as well."""
    roll_back(connection)
    try:
        connection.execute(f"SELECT pg_advisory_unlock({key})".encode(), prepare=False)
    except psycopg.Error:
        connection.close()
