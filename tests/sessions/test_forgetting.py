"""Forks, forgetting and limits of a session: what is gone is in no file, and what stays is as if it had never been said."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from conversing import MODEL
from stored import FAST, bytes_in, memory_of, tokens_of, user

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import (
    InputError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    StoreError,
)
from hmt_memory.store.sqlite.database import Database


def test_a_fork_may_begin_at_any_message(session: Session) -> None:
    ids = [id for turn in range(4) for id in session.add(user(f"turn {turn} and more"))]
    other = session.fork("other", upto=ids[1])
    assert [message.id for message in other.messages()] == ids[:2]
    assert other.add(user("elsewhere")) == [5] and session.add(user("here")) == [5]
    assert tokens_of(other)[:40] == tokens_of(session)[:40]
    with pytest.raises(SessionNotFoundError, match="no message 99"):
        session.fork("third", upto=99)
    with pytest.raises(SessionExistsError, match="'other' already"):
        session.fork("other")


def test_a_fork_shares_rows(store: MemoryStore, session: Session) -> None:
    session.add(user("word " * 400))
    counts = "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM segments)"
    with store.database.reading() as db:
        before = db.execute(counts).fetchone()
    other = session.fork("other")
    assert memory_of(other).shape == memory_of(session).shape
    with store.database.reading() as db:
        assert db.execute(counts).fetchone() == before


def test_forgetting_leaves_no_byte_in_any_file(tmp_path: Path) -> None:
    """Words, tokens and embeddings, in the database, its log, its free pages and the index, the store still open."""
    folder = tmp_path / "store"
    store = MemoryStore(folder)
    session = store.session("alice", MODEL)
    words = "xyzzy plugh the secret is 271828"
    for turn in range(20):
        session.add(user(f"turn {turn} " + "of other words " * 8))
    (id,) = session.add(user(words))
    for turn in range(20):
        session.add(user(f"turn {turn} " + "of other words " * 8))
    session.recall("secret")
    store.open_indexes.save(1, store.open_indexes._open[1])
    tokens = np.array(MODEL.backbone.encode(words), "<u4").tobytes()
    with store.database.reading() as db:
        at = db.execute("SELECT token_start FROM messages WHERE id = ?", (id,)).fetchone()[0]
        query = "SELECT data FROM segments JOIN payloads ON id = memory WHERE token_stop > ? ORDER BY seq LIMIT 3"
        embeddings = [row[0] for row in db.execute(query, (at,)).fetchall()]
    for secret in (words.encode(), tokens, *embeddings):
        assert "memory.db" in " ".join(bytes_in(folder, secret))
    assert bytes_in(folder, embeddings[0])[-1].endswith(".index") or "1.index" in bytes_in(folder, embeddings[0])
    assert session.forget([id]) == (1, ())
    for secret in (words.encode(), tokens, *embeddings):
        assert bytes_in(folder, secret) == []
    assert store.verify() == ([], []) and id not in [message.id for message in session.messages()]
    store.close()


def test_what_a_crash_left_of_an_erasure_is_finished_on_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    store = MemoryStore(folder)
    session = store.session("alice", MODEL)
    (id,) = session.add(user("xyzzy " * 50))
    session.add(user("something else"))
    monkeypatch.setattr(store.database, "empty_log", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        session.forget([id])
    with MemoryStore(folder) as again:
        assert [message.content for message in again.session("alice").messages()] == ["something else"]
    assert bytes_in(folder, b"xyzzy xyzzy") == []


@pytest.mark.slow
def test_a_process_that_knew_what_was_forgotten_cannot_write_it_back(tmp_path: Path) -> None:
    """Its index is in memory; closing does not save it over what the record says now."""
    folder = tmp_path / "store"
    one, other = MemoryStore(folder), MemoryStore(folder)
    for name in ("alice", "bob"):
        session = one.session(name, MODEL)
        ids = session.add([user("word " * 30), user("more " * 30)])
        assert other.session(name, MODEL).recall("word")
    with one.database.reading() as db:
        secrets = [row[0] for row in db.execute("SELECT data FROM segments JOIN payloads ON id = memory").fetchall()]
    one.session("alice", MODEL).forget(ids)
    one.delete("bob")
    other.close()
    assert [bytes_in(folder, secret) for secret in secrets] == [[]] * len(secrets)
    one.close()
    assert not list((folder / "indexes").glob("*")) if (folder / "indexes").exists() else True


def test_an_erasure_ends_what_another_process_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process forgets something and dies before it is overwritten: whoever erases next does that as well."""
    folder = tmp_path / "store"
    one, other = MemoryStore(folder), MemoryStore(folder)
    first = one.session("alice", MODEL)
    ids = first.add([user("xyzzy plugh " * 9), user("second")])
    fork = first.fork("fork")
    with monkeypatch.context() as patch:
        patch.setattr(other, "finish_erasing", lambda erasure: None)
        other.session("alice", MODEL).forget(ids[:1])
        other.delete("fork")
    with one.database.reading() as db:
        assert len(db.erasures()) == 2
    assert bytes_in(folder, b"xyzzy plugh")
    one.session("bob", MODEL).forget(one.session("bob", MODEL).add(user("hello")))
    with one.database.reading() as db:
        assert db.erasures() == []
    assert bytes_in(folder, b"xyzzy plugh") == [] and fork.name == "fork"
    one.close()
    other.close()


def test_a_disk_without_room_for_wiping_keeps_the_store_usable(
    store: MemoryStore, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = session.add([user("one"), user("two")])

    def full() -> None:
        raise StoreError("no room") from OSError("disk is full")

    monkeypatch.setattr(Database, "empty_log", lambda self: full())
    with pytest.raises(StoreError, match=r"gone from the record .* not overwritten yet \(disk is full\)"):
        session.forget(ids[:1])
    with MemoryStore(store.folder) as again:
        assert [message.content for message in again.session("alice").messages()] == ["two"]
    assert "not overwritten yet" in caplog.text


def test_what_others_rewrite_meanwhile_is_no_damage(store: MemoryStore, session: Session) -> None:
    ids = session.add([user("word " * 60), user("more " * 60)])
    fork = session.fork("fork")
    reply, theirs = session.reply(user("what?"), **FAST), fork.reply(user("what?"), **FAST)
    session.forget(ids[:1])
    with pytest.raises(SessionBusyError, match="rewritten"):
        reply.finish()
    expected = store.session("fork").fork("twin")
    store.delete("alice")
    assert theirs.finish().message_ids == [3, 4]
    again = store.session("twin", MODEL)
    assert expected.messages() == fork.messages(stop=2)
    assert again.reply(user("what?"), **FAST).finish().text == theirs.text
    fork.add(user("long " * 60))
    assert len(memory_of(fork)) // 32 == len(tokens_of(fork)) // 16 and store.verify() == ([], [])


def test_rewriting_does_not_grow_a_chain(store: MemoryStore, session: Session) -> None:
    ids = [id for turn in range(8) for id in session.add(user(f"turn {turn} " * 4))]
    fork = session.fork("fork")
    for id in (ids[6], ids[2], ids[4]):
        session.forget([id])
    fork.forget([ids[3]])
    store.delete("alice")
    fork.forget([ids[5]])
    with store.database.reading() as db:
        assert db.execute("SELECT count(*) FROM streams").fetchone() == (1,)
    assert [message.id for message in fork.messages()] == [id for id in ids if id not in (ids[3], ids[5])]


def test_forgetting_says_who_else_keeps_it(store: MemoryStore, session: Session) -> None:
    ids = session.add([user("one"), user("two")])
    session.fork("fork")
    early = session.fork("early", upto=ids[0])
    assert session.forget([ids[1]]) == (1, ("fork",))
    assert [message.content for message in store.session("fork").messages()] == ["one", "two"]
    assert [message.content for message in early.messages()] == ["one"]
    assert session.forget([]) == (0, ())
    with pytest.raises(SessionNotFoundError, match="no message 2, 77"):
        session.forget([ids[0], 77, 2])
    assert [message.content for message in session.messages()] == ["one"]


def test_progress_of_reading_anew(session: Session) -> None:
    (first,) = session.add(user("x"))
    session.add(user("word " * 300))
    seen: list[tuple[int, int]] = []
    session.forget([first], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 1000 and len(seen) > 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_retention_by_count(session: Session) -> None:
    session.add([{"role": "system", "content": "Be kind."}, *(user(f"turn {turn}") for turn in range(10))])
    session.set_retention(messages=8)
    for turn in range(10, 30):
        session.add(user(f"turn {turn}"))
        said = [message.content for message in session.messages()]
        assert len(said) <= 1 + 8 and said[0] == "Be kind." and said[-1] == f"turn {turn}"
    session.reply(user("and?"), **FAST).finish()
    assert len(session.messages()) <= 1 + 8
    assert session.stats()["retention"] == {"messages": 8}


def test_the_smallest_limit_keeps_the_newest_turn_and_the_system_prompt(session: Session) -> None:
    session.add({"role": "system", "content": "Be kind."})
    session.set_retention(messages=1)
    session.add(user("one"))
    session.add(user("two"))
    assert [message.content for message in session.messages()] == ["Be kind.", "two"]


def test_a_limit_holds_under_many_threads(store: MemoryStore, session: Session) -> None:
    session.set_retention(messages=4)
    errors: list[BaseException] = []

    def talk(thread: int) -> None:
        try:
            for turn in range(6):
                session.add(user(f"{thread}.{turn}"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=talk, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and 1 <= len(session.messages()) <= 4


def test_retention_by_age(tmp_path: Path) -> None:
    now = [1_000_000.0]
    store = MemoryStore(tmp_path, clock=lambda: now[0])
    session = store.session("alice", MODEL)
    session.set_retention(age=timedelta(days=10))
    for day in range(30):
        session.add(user(f"day {day}"))
        assert all(message.created_at.timestamp() >= now[0] - 10 * 86400 for message in session.messages())
        now[0] += 86400
    assert len(session.messages()) >= 8
    now[0] += 20 * 86400
    assert store.session("alice", MODEL).messages(), "opening forgets nothing"
    assert list(store.session("alice", MODEL).recall("day")) == []
    assert store.session("alice", MODEL).messages() == []
    for bad in ({"messages": 0}, {"age": timedelta(0)}):
        with pytest.raises(InputError, match="at least one message"):
            session.set_retention(**bad)  # type: ignore[arg-type]
    store.close()
