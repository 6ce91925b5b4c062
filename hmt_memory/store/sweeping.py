"""The steps of an erasure: delete rows that nobody shows any more, then overwrite their content.

Forgotten rows are taken from view in one transaction, which begins an erasure. Any process can do the steps that follow, and
they are taken up again after a crash. Each is one short transaction: another writer waits for one at most.
"""

from __future__ import annotations

import contextlib

from ..errors import SessionBusyError
from .backend import Backend
from .rows import StreamRow
from .transaction import Transaction

_ROWS_PER_STEP = 512
_BYTES_PER_STEP = 1 << 20


def finish(database: Backend, erasure: int) -> None:
    """Carry an erasure through to its end. Its content is then in no file, if the database can promise that.

    Raises:
        SessionBusyError: somebody kept reading or writing.
        StoreError: the disk is failing.
    """
    with database.lock(_lock(erasure)):
        _go_through(database, erasure)
    database.forget_lock(_lock(erasure))


def take_up(database: Backend, erasure: int) -> None:
    """Finish an erasure that a crash has left, unless another process is at it."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(database.lock(_lock(erasure), timeout=0))
        except SessionBusyError:
            return
        _go_through(database, erasure)
    database.forget_lock(_lock(erasure))


def _lock(erasure: int) -> str:
    return f"erasure-{erasure}"


def _go_through(database: Backend, erasure: int) -> None:
    while database.erasing(lambda db: _some_steps(db, erasure)):
        database.let_others_write()
    database.empty_log()
    database.erasing(lambda db: db.end_erasure(erasure))


def _some_steps(db: Transaction, erasure: int) -> bool:
    """Take as many steps as fit into a short transaction; return whether there is anything left to do."""
    rows, written = db.changes, 0
    while db.changes - rows < _ROWS_PER_STEP and written < _BYTES_PER_STEP:
        swept = _sweep(db, erasure)
        taken = 0 if swept else db.overwrite(erasure, _BYTES_PER_STEP)
        if not swept and not taken:
            return False
        written += taken
    return True


def _sweep(db: Transaction, erasure: int) -> bool:
    """Continue with the streams and corpora that an erasure has to go through. Returns whether there was one."""
    sweep = db.next_sweep(erasure)
    if sweep is None:
        return False
    if sweep.kind == "corpus":
        done = db.sweep_documents(sweep.id, erasure, _ROWS_PER_STEP) < _ROWS_PER_STEP
    else:
        done = _sweep_stream(db, erasure, sweep.id)
    if done:
        db.end_sweep(erasure, sweep)
    return True


def _sweep_stream(db: Transaction, erasure: int, stream: int) -> bool:
    """Delete some rows of a stream that no session, document or other stream shows. Returns whether none are left."""
    if not db.has_stream(stream) or db.is_shown(stream):
        return True
    row, children = db.stream(stream), db.children(stream)
    ends = _ends(children)
    if db.delete_rows(stream, ends, erasure, _ROWS_PER_STEP) == _ROWS_PER_STEP:
        return False
    if children:
        db.update_stream(row._replace(messages=ends[0], tokens=ends[1]))
    else:
        db.delete_stream(stream)
        if row.parent is not None:
            db.sweep_later(erasure, "stream", row.parent)
    return True


def _ends(children: list[StreamRow]) -> tuple[int, int, int]:
    """Return how many messages, tokens and segments of a stream its children show."""
    return (
        max((child.parent_messages for child in children), default=0),
        max((child.parent_tokens for child in children), default=0),
        max((child.parent_segments for child in children), default=0),
    )
