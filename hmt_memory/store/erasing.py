"""Erasures: what is deleted in one transaction and overwritten in many short ones, so that nobody waits for it.

The transaction that forgets something begins an erasure and says what is to be swept; from then on nobody is shown it. The
steps that follow (`sweeping`) can be done by any process, and are taken up again after a crash.
"""

from __future__ import annotations

import sqlite3


def begin(db: sqlite3.Connection) -> int:
    """Begin an erasure; return its number."""
    return int(db.execute("INSERT INTO erasures DEFAULT VALUES").lastrowid or 0)


def sweep_later(db: sqlite3.Connection, erasure: int, kind: str, id: int) -> None:
    """Say that a "stream", or the documents of a "corpus", may hold rows that nobody shows any more."""
    db.execute("INSERT OR IGNORE INTO sweeps VALUES (?, ?, ?)", (erasure, kind, id))


def unfinished(db: sqlite3.Connection) -> list[int]:
    """List the erasures that are under way, or were left by a crash."""
    return [int(id) for (id,) in db.execute("SELECT id FROM erasures ORDER BY id").fetchall()]


def finish(db: sqlite3.Connection, erasure: int) -> None:
    """Note that nothing is left of what was erased."""
    db.execute("DELETE FROM erasures WHERE id = ?", (erasure,))
