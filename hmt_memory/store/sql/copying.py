"""The rows of a whole store, copied into a new one. Both speak the same SQL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from itertools import islice
from typing import Protocol

from ...errors import InputError
from .transaction import SqlTransaction

# In the order in which rows refer to one another, each with the columns that its rows are in order of.
_TABLES = {
    "payloads": "id",
    "facts": "name",
    "models": "id",
    "streams": "id",
    "collections": "id",
    "documents": "collection, id",
    "messages": "stream, seq",
    "tokens": "stream, start",
    "segments": "stream, seq",
    "shares": "payload",
    "erasures": "id",
    "sweeps": "erasure, kind, id",
    "released": "payload",
    "drafts": "stream",
}
_WITH_IDS = ("payloads", "models", "streams", "collections", "erasures")
_USED = {"payloads": " WHERE id NOT IN (SELECT payload FROM vacant)"}
_AT_ONCE = 1000


class Store(Protocol):
    """A store in a SQL database."""

    def reading(self) -> AbstractContextManager[SqlTransaction]:
        """Open one consistent view."""
        ...

    def writing(self) -> AbstractContextManager[SqlTransaction]:
        """Open a transaction."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


def copy(source: SqlTransaction, target: SqlTransaction) -> None:
    """Copy all rows of a store into an empty one, ids included. An id whose row is gone is not given again there, either.

    Args:
        source: a view of the store.
        target: a transaction of the empty one.

    Raises:
        InputError: the target holds something.
    """
    if any(target.one(f"SELECT 1 FROM {table} LIMIT 1") for table in _TABLES):
        raise InputError("the store to copy to holds something. Name a new one.")
    for table, order in _TABLES.items():
        columns = source.columns(table)
        rows = source.lazily(f"SELECT {columns} FROM {table}{_USED.get(table, '')} ORDER BY {order}")
        while block := list(islice(rows, _AT_ONCE)):
            target.each(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(block[0]))})", block)
    for table in _WITH_IDS:
        target.continue_ids(table, after=source.last_id(table))


def clear(target: SqlTransaction) -> None:
    """Delete all rows of a store."""
    for table in reversed(_TABLES):
        target.execute(f"DELETE FROM {table}")
