"""Calls over a connection that is lost meanwhile: they are done again, or go on, and say what is so."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import crash_worker
import postgres
import pytest
from postgres import once
from stored import user

from hmt_memory import Corpus, MemoryStore, Session
from hmt_memory.errors import SessionBusyError, SessionNotFoundError
from hmt_memory.store.postgres import connections
from hmt_memory.store.postgres.connections import Connection
from hmt_memory.store.postgres.transaction import PostgresTransaction

MODEL = crash_worker.MODEL


@pytest.fixture
def store(postgres_url: str) -> Iterator[MemoryStore]:
    with MemoryStore(postgres_url, timeout=5) as opened:
        yield opened


@pytest.mark.slow
def test_looking_goes_on_over_another_connection(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.session("alice", MODEL)
    session.add(user("one " * 30))
    for work in (session.messages, session.stats, store.sessions, lambda: session.recall("one"), lambda: store.session("bob")):
        with monkeypatch.context() as patch:
            calls = once(patch, PostgresTransaction, "one", lambda: postgres.cut(postgres_url))
            once(patch, PostgresTransaction, "all", lambda: postgres.cut(postgres_url))
            with contextlib.suppress(SessionNotFoundError):
                work()
            assert calls[0] > 0 or work == store.sessions


def rebuilt(store: MemoryStore) -> Callable[[], object]:
    """A session to be read again with the same model."""
    session = store.session("alice", MODEL)
    session.add([user(f"{number} " + "word " * 30) for number in range(4)])
    return lambda: session.rebuild(MODEL)


def rebuilt_corpus(store: MemoryStore) -> Callable[[], object]:
    corpus = store.corpus("papers", MODEL)
    corpus.add_documents(["word " * 60, "another " * 60])
    return lambda: corpus.rebuild(MODEL)


def added(store: MemoryStore) -> Callable[[], object]:
    corpus = store.corpus("papers", MODEL)
    corpus.add_documents(["word " * 60])
    return lambda: corpus.add_documents(["another " * 60])


def removed(store: MemoryStore) -> Callable[[], object]:
    corpus = store.corpus("papers", MODEL)
    ids = corpus.add_documents(["word " * 60, "another " * 60])
    return lambda: corpus.remove(ids[1:])


def limited(store: MemoryStore) -> Callable[[], object]:
    session = store.session("alice", MODEL)
    session.add([user(f"{number} " + "word " * 30) for number in range(4)])
    return lambda: session.set_retention(messages=3)


def test_small_changes_are_made_again(store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = store.session("alice", MODEL)
    store.corpus("papers", MODEL)
    for change in (
        lambda: session.attach("papers"),
        lambda: session.set_metadata({"a": "b"}),
        lambda: session.detach("papers"),
    ):
        with monkeypatch.context() as patch:
            calls = once(patch, PostgresTransaction, "update_collection", lambda: postgres.cut(postgres_url))
            change()
            assert calls[0] == 2
    assert session.metadata() == {"a": "b"} and session.stats()["corpora"] == []


@pytest.mark.parametrize("step", ["storing", "reading"])
@pytest.mark.parametrize("made", [rebuilt, rebuilt_corpus, added, removed, limited])
def test_what_is_stored_is_not_said_to_be_lost_when_a_connection_is(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch, made: Any, step: str
) -> None:
    """Neither before the change is stored, which is then done again, nor in reading it."""
    work, of_corpus = made(store), made in (rebuilt_corpus, added, removed)
    if step == "storing":
        calls = once(monkeypatch, type(store.database), "_commit", lambda: postgres.cut(postgres_url))
    else:
        calls = once(monkeypatch, Corpus if of_corpus else Session, "_read_pending", lambda: postgres.cut(postgres_url))
    work()
    assert (calls[0] > 0 or made is removed) and store.verify() == ([], [])
    with MemoryStore(postgres_url) as again:
        if of_corpus:
            assert again.corpus("papers", MODEL).recall("word")
            assert len(again.corpus("papers").documents()) == (1 if made is removed else 2)
        else:
            assert again.session("alice", MODEL).recall("word")
            assert made is not limited or len(again.session("alice").messages()) <= 3


def test_threads_that_hold_locks_do_not_keep_one_another_from_reading(store: MemoryStore) -> None:
    """Many more threads than connections, each of which needs a second connection for what it holds."""
    together = threading.Barrier(24)

    def work(number: int) -> None:
        with store.database.lock(f"lock {number}"):
            if number < together.parties:
                together.wait(60)
            with store.database.reading() as db:
                assert db.fact(f"{number}") is None
            with store.database.writing() as changes, store.database.reading() as db:
                changes.set_fact(f"{number}", "done")
                assert db.fact(f"{number}") is None

    with ThreadPoolExecutor(40) as threads:
        list(threads.map(work, range(40)))
    with store.database.reading() as db:
        assert [db.fact(f"{number}") for number in range(40)] == ["done"] * 40


def test_who_waits_for_other_threads_is_told_so(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_QUEUE_SECONDS", 0)
    monkeypatch.setattr(connections, "_ROOM", (1, 2, 2))
    monkeypatch.setattr(store.database, "timeout", 0.1)
    with store.database.lock("mine"), ThreadPoolExecutor(1) as threads:
        with pytest.raises(SessionBusyError, match="other threads of this process"):
            threads.submit(store.sessions).result()
        assert store.sessions() == []
    assert ThreadPoolExecutor(1).submit(store.sessions).result() == []


@pytest.mark.parametrize("within", [False, True])
def test_a_lock_that_was_granted_to_an_interrupted_call_is_free(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch, within: bool
) -> None:
    real = Connection.execute

    def execute(self: Connection, query: Any, *arguments: Any, **options: Any) -> Any:
        result = real(self, query, *arguments, **options)
        if b"pg_advisory_lock" in (query if isinstance(query, bytes) else b""):
            raise KeyboardInterrupt
        return result

    with contextlib.ExitStack() as stack:
        if within:
            stack.enter_context(store.database.lock("another"))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Connection, "execute", execute)
            stack.enter_context(store.database.lock("mine"))
    with MemoryStore(postgres_url) as other, other.database.lock("mine", timeout=1), other.database.lock("another", timeout=1):
        assert store.sessions() == []
