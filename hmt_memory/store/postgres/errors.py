"""The store's own errors for those of PostgreSQL and its driver."""

from __future__ import annotations

import psycopg
from psycopg import errors

from ...errors import HMTError, SessionBusyError, StoreDamagedError, StoreError, StoreFullError, StoreInterruptedError

# A transaction that ended like this was rolled back, and the same work can be done again.
_INTERRUPTED = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.IdleInTransactionSessionTimeout,
    errors.ReadOnlySqlTransaction,  # the server has become a standby
)
_NO_ROOM = (errors.DiskFull, errors.OutOfMemory)
_DAMAGE = (
    errors.DataCorrupted,
    errors.IndexCorrupted,
    errors.UndefinedTable,
    errors.UndefinedColumn,
    psycopg.IntegrityError,
)


def lost(connection: psycopg.Connection) -> bool:
    """Return whether a connection is of no more use."""
    return connection.closed or connection.broken


def first_line(error: psycopg.Error) -> str:
    """Return what an error says, without details."""
    return str(error).strip().partition("\n")[0]


def as_ours(error: psycopg.Error, shown: str, *, lost: bool) -> HMTError:
    """Return the store's own error for the driver's.

    Args:
        error: the driver's error.
        shown: the address of the store.
        lost: whether the connection is lost with it.
    """
    said = first_line(error)
    if isinstance(error, errors.LockNotAvailable):
        return SessionBusyError(f"another process has been writing to {shown} for too long. Try again.")
    if isinstance(error, _NO_ROOM):
        return StoreFullError(f"{shown} cannot be written ({said}): nothing of this call was stored. Free some space.")
    if lost or isinstance(error, _INTERRUPTED):
        return StoreInterruptedError(f"{shown} was interrupted ({said}): nothing of this was stored. Try again.")
    if isinstance(error, _DAMAGE):
        return StoreDamagedError(f"{shown} is damaged ({said}). Restore a backup or an export.")
    return StoreError(f"{shown} cannot be used: {said}. Check the address and what its role may do.")
