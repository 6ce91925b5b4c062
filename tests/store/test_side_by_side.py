"""What a call meets when another one does all of its work between two steps of it. No damage is seen where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_worker
import numpy as np
import pytest
from stored import FAST, bytes_in, holds, memory_of, user
from tiny import PlainText

from hmt_memory import Corpus, MemoryStore, Session
from hmt_memory.errors import SessionBusyError, SessionNotFoundError
from hmt_memory.sessions import corpus as corpora
from hmt_memory.sessions import verify
from hmt_memory.store import lineage, rewriting
from hmt_memory.store.sqlite.transaction import SqliteTransaction

MODEL = crash_worker.MODEL


@pytest.fixture
def store(place: Path | str) -> Iterator[MemoryStore]:
    with MemoryStore(place, timeout=5) as opened:
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


def afterwards(patch: pytest.MonkeyPatch, owner: Any, name: str, work: Callable[[], Any]) -> None:
    """Let `work` be done once, right after something was called for the first time."""
    real, todo = getattr(owner, name), [work]

    def first(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        if todo:
            todo.pop()()
        return result

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

    beforehand(monkeypatch, verify, "_verify", work)
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


def test_a_fork_made_while_what_was_split_is_erased_keeps_its_places(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, forks = store.session("alice", MODEL), []
    ids = alice.add([user(f"turn {turn} " * 4) for turn in range(6)])

    def work() -> None:
        forks.append(other.session("alice", MODEL).fork("fork"))
        forks[0].add(user("said to the fork"))

    beforehand(monkeypatch, store, "finish_erasing", work)
    alice.forget(ids[1:2])
    forks[0].recall("turn")
    forks[0].add(user("and again"))
    assert store.verify() == ([], [])


def test_a_fork_joins_nothing_of_the_session_it_continues(store: MemoryStore) -> None:
    alice = store.session("alice", MODEL)
    ids = alice.add([user(f"turn {turn} " * 4) for turn in range(6)])
    alice.fork("beside")
    alice.forget(ids[2:3])
    fork = alice.fork("fork")
    store.delete("beside")
    (more, _) = fork.add([user("said to the fork"), user("and again")])
    fork.forget([more])
    assert len(alice.messages()) == 5 and len(fork.messages()) == 6 and store.verify() == ([], [])


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


@pytest.fixture
def unread(store: MemoryStore) -> Session:
    """A session that holds more than was read yet."""
    session = store.session("alice", MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_read_pending", lambda progress=None: session._snapshot())
        session.add([user("one"), user("word " * 300), user("more")])
    return session


def test_a_session_deleted_while_it_is_read_is_said_to_be(
    unread: Session, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    afterwards(monkeypatch, unread, "_snapshot", lambda: other.delete("alice"))
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        unread.add(user("more"))


def test_a_session_replaced_in_while_it_is_read_is_read_as_it_is_now(
    unread: Session, store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are stored without the session's lock."""
    row = unread._row

    def work() -> None:
        with other.database.writing() as db:
            now = row(db)
            (first,) = lineage.messages(db, lineage.of(db, now), 0, 1)
            forgotten = rewriting.cut(db, now, 1, first.tokens[1])
        other.finish_erasing(forgotten.erasure)

    afterwards(monkeypatch, unread, "_snapshot", work)
    ids = unread.add(user("something else"))
    assert [message.id for message in unread.messages()] == [1, *ids] and store.verify() == ([], [])


def test_a_corpus_deleted_while_it_is_read_is_said_to_be(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = store.corpus("papers", MODEL)
    beforehand(monkeypatch, corpus, "_read_chunk", lambda: other.delete_corpus("papers"))
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        corpus.add_documents(["a text " * 40])


def test_a_document_erased_while_a_worker_reads_it_is_not_stored_again(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = store.corpus("papers", MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "_read_pending", lambda *_, **__: None)
        erased, kept = corpus.add_documents(["a secret " * 40, "a text " * 40])
    beforehand(monkeypatch, corpora, "read_together", lambda: other.corpus("papers").remove([erased]))
    corpus.read_documents([erased, kept])
    with store.database.reading() as db:
        (segments,) = db.execute("SELECT count(*) FROM segments").fetchone()
    assert segments == corpus.stats()["segments"] == -(-len("a text " * 40) // 16)
    assert store.verify() == ([], [])


def test_a_session_deleted_while_its_rest_moves_is_said_to_be(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "_TOGETHER", 2)
    session = store.session("alice", MODEL)
    ids = session.add([user(f"secret {turn}") for turn in range(9)])
    beforehand(monkeypatch, store.database, "let_others_write", lambda: other.delete("alice"))
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        session.forget(ids[:1])
    store.close()
    MemoryStore(store.folder).close()
    assert not holds(store, b"secret 4")


def test_an_answer_that_replaces_what_moves_just_then(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Answers are stored without the session's lock."""
    monkeypatch.setattr(rewriting, "_TOGETHER", 2)
    session, mine = store.session("alice", MODEL), other.session("alice", MODEL)
    ids = session.add([user(f"secret {turn}") for turn in range(12)])
    reply = mine.reply(user("what?"), replacing=ids[6], logits_processors=[PlainText(crash_worker.TOKENIZER)], **FAST)
    beforehand(monkeypatch, store.database, "let_others_write", reply.finish)
    session.forget(ids[:1])
    assert [message.id for message in session.messages()] == [*ids[1:6], *reply.message_ids]
    assert store.verify() == ([], []) and not holds(store, b"secret 7")
    session.export(tmp_path / "export")
    fresh = store.import_session(tmp_path / "export", name="fresh").rebuild(MODEL)
    np.testing.assert_allclose(memory_of(session), memory_of(fresh), atol=2e-3)


def test_who_waits_for_another_to_erase_is_told_that_it_did_not_end(store: MemoryStore, other: MemoryStore) -> None:
    """Another process took the erasure up; until it has ended, the bytes are there."""
    store.session("alice", MODEL).add(user("a secret"))
    with MemoryStore(store.folder, timeout=0.2) as hasty, other.database.lock("erasure-1"):
        with pytest.raises(SessionBusyError, match="not overwritten yet"):
            hasty.delete("alice")
        assert holds(store, b"a secret")
    MemoryStore(store.folder).close()
    assert not holds(store, b"a secret")


class Crash(BaseException):
    """The process ends here."""


def test_an_index_that_a_crash_has_left_is_erased_with_what_it_was_made_of(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.session("alice", MODEL)
    session.add(user("kept " * 12))
    (id,) = session.add(user("forgotten " * 12))
    session.recall("word")
    store.open_indexes.save(session._id, store.open_indexes._open[session._id], always=True)
    with store.database.reading() as db:
        parts = lineage.of(db, session._row(db))
        embedding = list(lineage.segments(db, parts, 0, lineage.segment_count(db, parts)))[-1].memory
    assert bytes_in(store.database.cache, embedding)

    crash_after(monkeypatch, rewriting, "forget", lambda: session.forget([id]))
    MemoryStore(store.folder).close()
    with store.database.reading() as db:
        assert not db.erasures()
    assert not holds(store, embedding)


def crash_after(patch: pytest.MonkeyPatch, owner: Any, name: str, call: Callable[[], Any]) -> None:
    """Let a call end right after something inside it."""

    def crash() -> None:
        raise Crash

    with patch.context() as crashing, pytest.raises(Crash):
        afterwards(crashing, owner, name, crash)
        call()


def crash_while_moving(patch: pytest.MonkeyPatch, store: MemoryStore, ids: list[int]) -> None:
    patch.setattr(rewriting, "_TOGETHER", 2)
    crash_after(patch, store.database, "let_others_write", lambda: store.session("alice").forget(ids[:1]))


def crash_while_erasing(patch: pytest.MonkeyPatch, store: MemoryStore, ids: list[int]) -> None:
    crash_after(patch, rewriting, "forget", lambda: store.session("alice").forget(ids[:1]))


@pytest.mark.parametrize("crash", [crash_while_moving, crash_while_erasing])
@pytest.mark.parametrize("erase", ["forget", "replace", "delete"])
def test_what_a_crash_of_another_process_has_left_is_erased_as_well(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch, crash: Any, erase: str
) -> None:
    """A draft, and rows that are still to be swept, refer to the same content as what takes their place."""
    ids = store.session("alice", MODEL).add([user(f"secret {turn} of alice") for turn in range(12)])
    mine = other.session("alice", MODEL)
    crash(monkeypatch, store, ids)
    if erase == "forget":
        mine.forget(ids[11:])
    elif erase == "replace":
        mine.add(user("something else"), replacing=ids[11])
    else:
        other.delete("alice")
    assert not holds(store, b"secret 11 of alice") and other.verify() == ([], [])
    assert holds(store, b"secret 4 of alice") == (erase != "delete")
    with store.database.reading() as db:
        assert not db.erasures() and not db.drafted()


def test_a_draft_of_a_session_that_shares_the_past_is_given_up(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = store.session("alice", MODEL)
    ids = alice.add([user(f"secret {turn} of alice") for turn in range(12)])
    alice.fork("fork")
    crash_while_moving(monkeypatch, store, ids)
    other.delete("fork")
    other.delete("alice")
    assert not holds(store, b"of alice")


@pytest.mark.parametrize("place", ["folder"], indirect=True)  # a server moves no row
def test_nothing_is_erased_between_giving_room_up_and_rewriting_the_file(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows may move in between and leave copies; after a crash there, whoever erases next rewrites the file first."""
    keep = store.session("keep", MODEL)
    (id,) = keep.add(user("a secret"))
    hasty = MemoryStore(store.folder, timeout=0.2)
    refused: list[str] = []

    def work() -> None:
        with pytest.raises(SessionBusyError) as error:
            hasty.session("keep").forget([id])
        refused.append(str(error.value))

    afterwards(monkeypatch, SqliteTransaction, "drop_vacant", work)
    store.compact()
    assert len(refused) == 1 and len(keep.messages()) == 1
    crash_after(monkeypatch, SqliteTransaction, "drop_vacant", store.compact)
    rewritten: list[Path] = []
    afterwards(monkeypatch, other.database, "rewrite", lambda: rewritten.append(other.folder))
    other.session("keep").forget([id])
    assert rewritten == [other.folder]
    hasty.close()


@pytest.mark.parametrize("change", ["forget", "delete"])
def test_an_import_that_is_changed_while_it_is_opened_is_opened_as_it_is_now(
    store: MemoryStore, other: MemoryStore, monkeypatch: pytest.MonkeyPatch, change: str, tmp_path: Path
) -> None:
    """Its tokens are compared with its messages then."""
    ids = store.session("alice", MODEL).add([user("one"), user("two"), user("three")])
    store.session("alice").export(tmp_path / "export")
    other.import_session(tmp_path / "export", name="imported")

    def work() -> None:
        if change == "forget":
            other.session("imported").forget(ids[:1])
        else:
            other.delete("imported")

    afterwards(monkeypatch, store, "_open", work)
    if change == "forget":
        assert [message.id for message in store.session("imported", MODEL).messages()] == ids[1:]
        assert store.session("imported", MODEL).recall("two") is not None and store.verify() == ([], [])
    else:
        with pytest.raises(SessionNotFoundError, match="was deleted"):
            store.session("imported", MODEL)
