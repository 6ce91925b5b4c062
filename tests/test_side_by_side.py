"""What a call meets when another one does all of its work between two steps of it. No damage is seen where there is none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_worker
import numpy as np
import pytest
from test_laws import memory_of
from test_session import FAST, bytes_in, user

from hmt_memory import MemoryStore, history
from hmt_memory import session as session_module
from hmt_memory.errors import SessionBusyError, SessionNotFoundError
from hmt_memory.store import lineage

MODEL = crash_worker.MODEL


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store", timeout=5) as opened:
        yield opened


@pytest.fixture
def other(store: MemoryStore) -> Iterator[MemoryStore]:
    """Another process's store."""
    with MemoryStore(store.folder, timeout=5) as opened:
        yield opened


def beforehand(patch: pytest.MonkeyPatch, owner: Any, name: str, work: Callable[[], Any]) -> None:
    """Let `work` be done once, right before something is called for the first time."""
    real, todo = getattr(owner, name), [work]

    def first(*arguments: Any, **options: Any) -> Any:
        if todo:
            todo.pop()()
        return real(*arguments, **options)

    patch.setattr(owner, name, first)


def test_what_is_deleted_or_rewritten_while_all_is_verified_is_no_damage(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = store.session("alice", MODEL).add([user("one"), user("two")])
    store.session("bob", MODEL).add(user("three"))
    store.corpus("papers", MODEL).add_documents(["a text " * 9])

    def work() -> None:
        other.session("alice").forget(ids[:1])
        other.delete("bob")
        other.delete_corpus("papers")

    beforehand(monkeypatch, store, "_verify", work)
    assert store.verify() == ([], [])


def test_joining_what_rewriting_split_moves_nothing_that_others_show(store: MemoryStore, other: MemoryStore) -> None:
    """A fork goes by the places it knew, with no sign of its being rewritten."""
    alice = store.session("alice", MODEL)
    ids = alice.add([user(f"turn {turn} " * 4) for turn in range(6)])
    beside = alice.fork("beside")
    alice.forget(ids[3:4])
    fork = other.session("alice", MODEL).fork("fork")
    fork.add(user("said to the fork"))
    other.delete(beside.name)
    alice.forget(ids[5:])
    assert [message.id for message in fork.messages()] == [*ids[:3], *ids[4:], ids[-1] + 1]
    fork.recall("turn")
    fork.add(user("and again"))
    assert fork.reply(user("what?"), **FAST).finish().text and store.verify() == ([], [])


def test_a_fork_made_before_what_was_split_is_joined(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, forks = store.session("alice", MODEL), []
    ids = alice.add([user(f"turn {turn} " * 4) for turn in range(6)])

    def work() -> None:
        forks.append(other.session("alice", MODEL).fork("fork"))
        forks[0].add(user("said to the fork"))

    beforehand(monkeypatch, history, "compact", work)
    alice.forget(ids[1:2])
    forks[0].recall("turn")
    forks[0].add(user("and again"))
    assert store.verify() == ([], [])


def test_what_could_not_be_joined_is_joined_once_the_fork_is_gone(store: MemoryStore) -> None:
    alice = store.session("alice", MODEL)
    ids = alice.add([user(f"turn {turn} " * 4) for turn in range(9)])
    alice.fork("fork")
    for id in ids[1:7]:
        alice.forget([id])
    with store.database.reading() as db:
        assert len(lineage.of(db, alice._row(db))) == 2
    store.delete("fork")
    alice.forget(ids[7:8])
    with store.database.reading() as db:
        assert len(lineage.of(db, alice._row(db))) == 1
    assert store.verify() == ([], [])


def test_a_session_deleted_while_something_is_added_is_said_to_be(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.session("alice", MODEL)
    beforehand(monkeypatch, session_module, "read_on", lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_read_pending", lambda progress=None: session._snapshot())
        session.add(user("word " * 300))
    beforehand(monkeypatch, session, "_snapshot", lambda: None)
    real = session._snapshot

    def snapshot(**options: Any) -> Any:
        found = real(**options)
        if "alice" in other.sessions():
            other.delete("alice")
        return found

    monkeypatch.setattr(session, "_snapshot", snapshot)
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        session.add(user("more"))


def test_a_session_replaced_in_while_it_is_read_is_read_as_it_is_now(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, mine = store.session("alice", MODEL), other.session("alice", MODEL)
    ids = session.add([user("word " * 9), user("more " * 9), user("third " * 9)])
    reply = mine.reply(user("what?"), replacing=ids[1], **FAST)
    session.rebuild(MODEL)
    assert reply is not None


def test_a_corpus_deleted_while_it_is_read_is_said_to_be(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = store.corpus("papers", MODEL)
    beforehand(monkeypatch, corpus, "_read_chunk", lambda: other.delete_corpus("papers"))
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        corpus.add_documents(["a text " * 40])


def test_a_session_deleted_while_its_rest_moves_is_said_to_be(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_TOGETHER", 2)
    session = store.session("alice", MODEL)
    ids = session.add([user(f"secret {turn}") for turn in range(9)])
    beforehand(monkeypatch, store.database, "let_others_write", lambda: other.delete("alice"))
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        session.forget(ids[:1])
    store.close()
    MemoryStore(store.folder).close()
    assert bytes_in(store.folder, b"secret 4") == []


def test_an_answer_that_replaces_what_moves_just_then(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are stored without the session's lock."""
    monkeypatch.setattr(history, "_TOGETHER", 2)
    session, mine = store.session("alice", MODEL), other.session("alice", MODEL)
    ids = session.add([user(f"secret {turn}") for turn in range(12)])
    reply = mine.reply(user("what?"), replacing=ids[6], **FAST)
    beforehand(monkeypatch, store.database, "let_others_write", reply.finish)
    session.forget(ids[:1])
    assert [message.id for message in session.messages()] == [*ids[1:6], *reply.message_ids]
    assert store.verify() == ([], []) and bytes_in(store.folder, b"secret 7") == []
    session.export(store.folder.parent / "export")
    fresh = store.import_session(store.folder.parent / "export", name="fresh").rebuild(MODEL)
    np.testing.assert_allclose(memory_of(session), memory_of(fresh), atol=2e-3)


def test_who_waits_for_another_to_erase_is_told_that_it_did_not_end(store: MemoryStore, other: MemoryStore) -> None:
    """Another process took the erasure up; until it has ended, the bytes are there."""
    store.session("alice", MODEL).add(user("a secret"))
    with MemoryStore(store.folder, timeout=0.2) as hasty, other.database.lock("erasure-1"):
        with pytest.raises(SessionBusyError, match="not overwritten yet"):
            hasty.delete("alice")
        assert bytes_in(store.folder, b"a secret")
    MemoryStore(store.folder).close()
    assert bytes_in(store.folder, b"a secret") == []


class Crash(BaseException):
    """The process ends here."""


def test_an_index_that_a_crash_has_left_is_erased_with_what_it_was_made_of(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.session("alice", MODEL)
    session.add(user("kept " * 12))
    (id,) = session.add(user("forgotten " * 12))
    session.recall("word")
    store._save_index(session._id, store._indexes[session._id], always=True)
    with store.database.reading() as db:
        parts = lineage.of(db, session._row(db))
        embedding = list(lineage.segments(db, parts, 0, lineage.segment_count(db, parts)))[-1].memory
    assert bytes_in(store.folder / "indexes", embedding)

    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(store, "drop_index", crash)
        patch.setattr(store, "finish_erasing", crash)
        with pytest.raises(Crash):
            session.forget([id])
    MemoryStore(store.folder).close()
    with store.database.reading() as db:
        assert not db.erasures()
    assert [path.name for path in bytes_in(store.folder, embedding)] == []


def test_a_process_forked_while_a_thread_takes_its_turn_goes_on(store: MemoryStore) -> None:
    """A mutex that another thread held in that moment would never be released in the child."""
    with store._mutex:
        child = os.fork()
        if not child:
            signal.alarm(10)
            store.reading_mutex(1)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
