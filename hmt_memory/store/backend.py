"""The interface of a database that holds a store: transactions, locks, erasing. Knows no database.

No module above names a driver, its types or its errors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from .transaction import Transaction

T = TypeVar("T")


class Capability(Enum):
    """A promise that some databases make and others cannot."""

    ERASES_ROWS = "what is erased is found by no statement when the erasure is finished"
    ERASES_BYTES = "it is in no file of the store, either"
    MANY_HOSTS = "processes of several machines may use one store"
    GIVES_ROOM_BACK = "the room of what was erased can be given back to the disk: `compact`"
    SEPARATES_TENANTS = "the database itself keeps the rows of other tenants from whoever has opened the store"


class Backend(Protocol):
    """A database that holds a store. Safe to share between threads; a forked process opens its own connections.

    Raises, from everything: StoreError and its leaves, SessionBusyError; never a driver's own error.
    """

    capabilities: frozenset[Capability]
    place: str  # as messages name it, without secrets
    cache: Path  # folder of files that can be made again
    former_cache: Path | None  # where they lay before the store kept tenants apart, if it does
    timeout: float
    read_only: bool

    def reading(self) -> AbstractContextManager[Transaction]:
        """Open one consistent view. Inside it, the same thread gets the same view again."""
        ...

    def writing(self) -> AbstractContextManager[Transaction]:
        """Open a transaction that is durable when the block ends, and never was if it raises."""
        ...

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one consistent view; `again` if need be."""
        ...

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction; `again` if need be."""
        ...

    def erasing(self, work: Callable[[Transaction], T]) -> T:
        """Run `work`, which makes room, in a transaction. If the disk is full, the room kept for this is used."""
        ...

    def again(self, work: Callable[[], T]) -> T:
        """Run `work`, which stores all or nothing; again if the database ended it with nothing stored.

        Inside a lock or a view it is run once: what the work rests on may have changed by then.
        """
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep everybody else from writing."""
        ...

    def lock(self, name: str, *, timeout: float | None = None) -> AbstractContextManager[None]:
        """Hold a lock that only one block of all threads and processes holds at a time.

        Args:
            name: of the lock.
            timeout: seconds to wait; None: as long as for another writer.

        Raises:
            SessionBusyError: somebody else holds it.
        """
        ...

    def forget_lock(self, name: str) -> None:
        """Remove the traces of a lock that nobody will ask for again."""
        ...

    def let_others_write(self) -> None:
        """Pause between two transactions of one long work."""
        ...

    def empty_log(self) -> None:
        """Make sure that overwritten bytes are in no file."""
        ...

    def rewrite(self) -> None:
        """Drop content that holds nothing, and give its room back to the disk. Nothing is erased meanwhile."""
        ...

    def copy_to(self, folder: Path) -> None:
        """Write a copy of everything, as of one moment, into an existing empty folder."""
        ...

    def size(self) -> int:
        """Return the number of bytes that the database takes."""
        ...

    def problems(self) -> list[str]:
        """Return what the database itself finds wrong."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...
