"""What calls ask of SQLite: as little in a long session as in a short one. Counted in steps of its machine, not timed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_worker import MODEL
from stored import DECODING, user

from hmt_memory import MemoryStore, Session
from hmt_memory.store import lineage, rewriting

_LENGTHS = {"short": 30, "long": 600}  # messages
_CALLS: dict[str, Callable[[Session], Any]] = {
    "recall": lambda session: session.recall("Which rose is red?"),
    "reply": lambda session: session.reply(user("Which rose is red?"), **DECODING).finish(),
    "add": lambda session: session.add(user("The rose of today is white.")),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:
    """A store with a short session and a long one."""
    with MemoryStore(tmp_path_factory.mktemp("store")) as store:
        for name, count in _LENGTHS.items():
            store.session(name, MODEL).add([user(f"Rose number {number} of the garden is red.") for number in range(count)])
        yield store


def connection_of(store: MemoryStore) -> sqlite3.Connection:
    """The one that this thread reads by."""
    with store.database.reading() as db:
        connection: sqlite3.Connection = db._db
    return connection


def steps_of(connection: sqlite3.Connection, work: Callable[[], Any]) -> int:
    """How many instructions SQLite executes for something by a connection, in tens."""
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    connection.set_progress_handler(count, 10)
    try:
        work()
    finally:
        connection.set_progress_handler(None, 0)
    assert counted[0], "another connection was used"
    return counted[0]


@pytest.mark.parametrize("call", _CALLS)
def test_a_call_asks_for_no_more_in_a_long_session(told: MemoryStore, call: str) -> None:
    counted = {}
    for name in _LENGTHS:
        session = told.session(name, MODEL)
        _CALLS[call](session)  # opens indexes
        counted[name] = steps_of(connection_of(told), lambda session=session: _CALLS[call](session))
    assert counted["long"] <= 1.5 * counted["short"]


@pytest.mark.parametrize("look", [lineage.tokens, lineage.messages_in])
def test_what_was_said_at_a_place_is_found_without_looking_at_the_rest(told: MemoryStore, look: Callable[..., Any]) -> None:
    counted = {}
    for name in _LENGTHS:
        session = told.session(name)
        with told.database.reading() as db:
            parts = lineage.of(db, session._row(db))
            (one,) = lineage.messages(db, parts, -5, -4)
            counted[name] = steps_of(db._db, lambda parts=parts, one=one: look(db, parts, *one.tokens))
    assert counted["long"] <= counted["short"] + 3


def test_forgetting_costs_no_more_with_many_forks_of_others(tmp_path: Path) -> None:
    """Forks share rows that are not forgotten: they are not looked at."""
    store = MemoryStore(tmp_path / "store")
    shared, alone = store.session("shared", MODEL), store.session("alone", MODEL)
    ids = {session.name: session.add([user(f"turn {turn}") for turn in range(6)]) for session in (shared, alone)}
    for number in range(60):
        shared.fork(f"fork {number}", upto=ids["shared"][2])
    counted = {}
    for session in (alone, shared):
        with store.database.writing() as db:
            row, parts = session._row(db), lineage.of(db, session._row(db))
            seq = lineage.size(parts)[0] - 1
            counted[session.name] = steps_of(
                db._db, lambda row=row, parts=parts, seq=seq: rewriting._sharing(db, row, parts, [seq])
            )
    assert counted["shared"] <= counted["alone"] + 60
    assert shared.forget(ids["shared"][:1])[1] == tuple(sorted(f"fork {number}" for number in range(60)))
    for number in range(60):
        store.delete(f"fork {number}")
    shared.forget(ids["shared"][5:])
    with store.database.reading() as db:
        assert db.execute("SELECT count(*) FROM streams").fetchone() == (2,), "one for each session"
    assert store.verify() == ([], [])
    store.close()
