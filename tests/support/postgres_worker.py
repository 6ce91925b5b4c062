"""What runs in processes of their own at one PostgreSQL store, beside `crash_worker`."""

from __future__ import annotations

import time

from crash_worker import Journal

from hmt_memory import MemoryStore


def hold_and_wait(url: str, lock: str, journal_path: str) -> None:
    """Hold a lock, a transaction and a view, until somebody kills the process."""
    store = MemoryStore(url)
    with store.database.lock(lock), store.database.writing() as db, store.database.reading():
        db.set_fact("half", "done")
        Journal(journal_path)("held", lock)
        time.sleep(600)
