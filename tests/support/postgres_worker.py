"""What runs in processes of their own at one PostgreSQL store, beside `crash_worker`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import crash_worker
from crash_worker import Journal

from hmt_memory import MemoryStore


def write(url: str, who: str, count: int, journal_path: str) -> None:
    """Add `count` messages to the session that others write too."""
    os.environ["HMT_CACHE"] = str(Path(journal_path).parent / "caches")
    crash_worker.write(url, who, count, journal_path)


def hold_and_wait(url: str, lock: str, journal_path: str) -> None:
    """Hold a lock, a transaction and a view, until somebody kills the process."""
    os.environ["HMT_CACHE"] = str(Path(journal_path).parent / "caches")
    store = MemoryStore(url)
    with store.database.lock(lock), store.database.writing() as db, store.database.reading():
        db.set_fact("half", "done")
        Journal(journal_path)("held", lock)
        time.sleep(600)


def fork_and_write(url: str, journal_path: str) -> None:
    """Fork with the store open; parent and child both go on writing."""
    os.environ["HMT_CACHE"] = str(Path(journal_path).parent / "caches")
    crash_worker.fork_and_write(url, journal_path)
