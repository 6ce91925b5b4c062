"""Erasing: what is forgotten is in no file, nobody waits for it, and no crash changes that (`crash_conformance`)."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crash_worker
import numpy as np
import postgres
import pytest
from processes import start
from sqlite_pages import Pages
from stored import DECODING, holds, memory_of, user
from tiny import LONG

from hmt_memory import MemoryStore
from hmt_memory.chat.transcript import Batch
from hmt_memory.errors import SessionBusyError, SessionNotFoundError, StoreError, StoreFullError
from hmt_memory.store import lineage, rewriting, sweeping
from hmt_memory.store.sqlite import database, files
from hmt_memory.store.sqlite.database import Database
from hmt_memory.store.sqlite.transaction import SqliteTransaction

MODEL = crash_worker.MODEL


@pytest.fixture
def store(place: Path | str) -> Iterator[MemoryStore]:
    with MemoryStore(place, timeout=5) as opened:
        yield opened


in_a_folder = pytest.mark.parametrize("place", ["folder"], indirect=True)  # what is about the files of SQLite
slow_on_a_server = pytest.mark.parametrize("place", ["folder", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True)


def told(store: MemoryStore, name: str, count: int, text: str = "{name} {turn} secret-{name}-{turn}-") -> list[int]:
    """A session of so many messages that nobody has read; their ids."""
    session = store.session(name, MODEL)
    bodies = [user(text.format(name=name, turn=turn)) for turn in range(count)]
    with store.database.writing() as db:
        row = session._row(db)
        parts = lineage.of(db, row)
        _, ids = session._append(db, row, parts, session._as_it_follows(parts, Batch(bodies, ())))
    return ids


def content_of(store: MemoryStore) -> bytes:
    """Every byte of a store's files; with a server, of its rows of content and of the files on this machine."""
    if isinstance(store.folder, Path):
        return b"".join(path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    rows = postgres.run(store.folder, "SELECT data FROM payloads")
    return b"".join([data for (data,) in rows] + [path.read_bytes() for path in store.database.cache.iterdir()])


def log_bytes(store: MemoryStore) -> int:
    path = store.folder / "memory.db-wal"
    return path.stat().st_size if path.exists() else 0


# --- in no file -------------------------------------------------------------------------------------------------------


@in_a_folder
@pytest.mark.slow
def test_no_copy_of_content_is_left_where_it_does_not_stand(store: MemoryStore) -> None:
    """Random writing and erasing: in the pages of the content, every byte that belongs to no row is zero."""
    chance = random.Random(3)
    live: list[tuple[int, int]] = []
    for _ in range(2000 if LONG else 200):
        with store.database.writing() as db:
            erasure = db.begin_erasure()
            for _ in range(chance.choice([1, 2, 30])):
                if chance.random() < 0.6 or not live:
                    size = chance.randint(1, chance.choice([60, 700, 9000]))
                    live.append((db.put(chance.randbytes(size)).id, size))
                else:
                    db.release(erasure, [live.pop(chance.randrange(len(live)))[0]])
        sweeping.finish(store.database, erasure)
    with store.database.reading() as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'payloads'").fetchone()
        assert db.execute("SELECT count(*) FROM payloads").fetchone()[0] < len(live) * 2, "room is used again"
    assert Pages(store.folder / "memory.db").stray_bytes(root) == 0


def test_rows_that_move_do_leave_copies(tmp_path: Path) -> None:
    """What the test above looks for is there once rows are deleted instead, although SQLite is told to clear them."""
    db = sqlite3.connect(tmp_path / "moving.db", isolation_level=None)
    db.execute("PRAGMA secure_delete = ON").fetchall()
    db.execute("CREATE TABLE payloads (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
    chance = random.Random(3)
    db.execute("BEGIN")
    for _ in range(3000):
        db.execute("INSERT INTO payloads (data) VALUES (?)", (chance.randbytes(chance.randint(1, 700)),))
    for id in range(1, 3000):
        if id % 5:
            db.execute("DELETE FROM payloads WHERE id = ?", (id,))
    db.execute("COMMIT")
    (root,) = db.execute("SELECT rootpage FROM sqlite_master").fetchone()
    db.close()
    assert Pages(tmp_path / "moving.db").stray_bytes(root) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20 if LONG else 2))
def test_secrets_of_many_sessions_are_gone_when_forgetting_returns(store: MemoryStore, seed: int) -> None:
    """Any order of adding, asking, editing, forking, forgetting, renaming and deleting; every file is searched."""
    chance, gone, held = random.Random(seed), set(), {}
    for turn in range(400 if LONG else 60):
        name = f"session-{chance.randrange(5)}-of-{seed}"
        session, known = store.session(name, MODEL), held.setdefault(name, [])
        kind = chance.choice(["add", "add", "add", "edit", "fork", "forget", "delete", "corpus"])
        secret = f"{seed}.{turn}." + chance.randbytes(8).hex()
        if kind == "add":
            known += [(id, secret) for id in session.add(user(f"{secret} " + "word " * chance.randrange(60)))]
        elif kind == "edit" and known:
            at = chance.randrange(len(known))
            gone |= {text for _, text in known[at:]}
            known[at:] = [(id, secret) for id in session.add(user(f"{secret} anew"), replacing=known[at][0])]
        elif kind == "fork" and known:
            fork = session.fork(f"fork-{turn}-{seed}")
            fork.forget([known[0][0]])
            store.delete(fork.name)
            gone.add(f"fork-{turn}-{seed}")
        elif kind == "forget" and known:
            id, text = known.pop(chance.randrange(len(known)))
            gone.add(text)
            session.forget([id])
        elif kind == "delete":
            gone |= {text for _, text in held.pop(name)}
            store.delete(name)
        elif kind == "corpus":
            corpus = store.corpus("papers", MODEL)
            corpus.add_documents([(f"name of {secret}", f"text of {secret} " * 9)])
            corpus.remove([document.id for document in corpus.documents()][:1])
            kept = {document.name.rpartition(" ")[2] for document in corpus.documents()}
            gone |= {secret} - kept
    content = content_of(store)
    still = {text for known in held.values() for _, text in known}
    assert gone - still and not [text for text in gone - still if text.encode() in content]
    assert all(text.encode() in content for text in still) and store.verify() == ([], [])


def test_names_are_content_too(store: MemoryStore) -> None:
    store.session("alice@wonderland.example", MODEL).add(user("hello"))
    store.rename("alice@wonderland.example", "bob")
    assert not holds(store, b"wonderland")
    store.delete("bob")
    assert store.sessions() == []


def test_what_is_erased_of_a_shared_past_stays_with_those_who_keep_it(store: MemoryStore) -> None:
    first = store.session("first", MODEL)
    ids = first.add([user("one"), user("a shared secret"), user("three")])
    second = first.fork("second")
    assert first.forget(ids[1:2]) == (1, ("second",))
    assert [message.content for message in second.messages()] == ["one", "a shared secret", "three"]
    assert holds(store, b"a shared secret")
    assert second.forget(ids[1:2]) == (1, ())
    assert not holds(store, b"a shared secret")
    for session in (first, second):
        assert [message.content for message in session.messages()] == ["one", "three"]
    assert store.verify() == ([], [])


@in_a_folder
@pytest.mark.slow
def test_room_is_used_again_and_given_back_when_asked(store: MemoryStore) -> None:
    sizes = []
    for _ in range(4):
        told(store, "long", 400, "x" * 900)
        store.delete("long")
        sizes.append(store.database.size())
    assert sizes[-1] <= sizes[0] * 1.02
    keep = store.session("keep", MODEL)
    keep.add(user("this stays"))
    assert store.vacant_bytes() > 300_000 and store.compact() > 300_000 and store.vacant_bytes() == 0
    assert [message.content for message in keep.messages()] == ["this stays"] and store.verify() == ([], [])


@in_a_folder
def test_a_rewriting_that_a_crash_has_cut_short_is_done_on_opening(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may move while room is given up: until the file is rewritten, copies of content may lie about."""
    told(store, "long", 50, "x" * 900)
    store.delete("long")
    told(store, "keep", 50)
    with monkeypatch.context() as patch:
        patch.setattr(store.database, "rewrite", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.compact()
    done: list[Path] = []
    monkeypatch.setattr(Database, "rewrite", lambda self: done.append(self.folder))
    MemoryStore(store.folder).close()
    MemoryStore(store.folder).close()
    assert done == [store.folder]


@in_a_folder
def test_an_edit_rewrites_no_file(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it takes no longer in a large store, and nobody waits for more than a write."""
    monkeypatch.setattr(Database, "rewrite", lambda _: pytest.fail("the file is rewritten"))
    session = store.session("alice", MODEL)
    (said,) = session.add(user("a first secret"))
    session.add(user("something else"), replacing=said)
    asked = session.reply(user("a second secret"), **DECODING).finish().message_ids[0]
    session.reply(user("another question"), replacing=asked, **DECODING).finish()
    assert [message.content for message in session.messages()][:2] == ["something else", "another question"]
    assert not holds(store, b"a first secret") and not holds(store, b"a second secret")


# --- nobody waits -----------------------------------------------------------------------------------------------------


@slow_on_a_server
def test_others_write_between_the_steps_of_an_erasure(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of thousands of messages is deleted; another process's session is written to between any two steps."""
    told(store, "long", 1500)
    other = MemoryStore(store.folder, timeout=0.2)
    busy, said, real = other.session("busy", MODEL), [], sweeping._some_steps

    def some_steps(db: SqliteTransaction, erasure: int) -> bool:
        changes = db.changes
        more = real(db, erasure)
        assert db.changes - changes < 5000
        steps.append(more)
        return more

    def erasing_beside(self: Any, work: Any) -> Any:
        said.append(busy.add(user(f"between {len(said)}")))
        return plain(self, work)

    steps: list[bool] = []
    kind = type(store.database)
    plain = kind.erasing
    monkeypatch.setattr(sweeping, "_some_steps", some_steps)
    monkeypatch.setattr(kind, "erasing", erasing_beside)
    store.delete("long")
    assert len(steps) > 10 and len(said) >= len(steps)
    assert [message.content for message in busy.messages()] == [f"between {turn}" for turn in range(len(said))]
    assert not holds(store, b"secret-long-7-")
    other.close()


@slow_on_a_server
def test_forgetting_early_in_a_long_session_moves_the_rest_in_short_transactions(store: MemoryStore) -> None:
    ids = told(store, "long", 1400)
    session, other = store.session("long"), MemoryStore(store.folder, timeout=0.2)
    before = session.messages()
    real, largest = lineage.append_kept, []

    def append(db: SqliteTransaction, tip: int, messages: Any) -> None:
        largest.append(len(messages))
        real(db, tip, messages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineage, "append_kept", append)
        session.forget([ids[3], ids[700]])
    assert max(largest) <= 256 and len(largest) == 6
    assert session.messages() == [message for message in before if message.id not in (ids[3], ids[700])]
    assert other.verify() == ([], []) and not holds(store, b"secret-long-700-")
    other.close()


@slow_on_a_server
def test_what_is_added_while_the_rest_moves_is_kept(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is stored between two of the transactions that forgetting takes."""
    ids = told(store, "long", 1100)
    session, real, added = store.session("long", MODEL), rewriting._advance, []

    def advance(db: SqliteTransaction, **options: Any) -> int:
        stream = real(db, **options)
        if not added:
            row = session._row(db)
            parts = lineage.of(db, row)
            said = session._as_it_follows(parts, Batch([user("said meanwhile")], ()))
            added.extend(session._append(db, row, parts, said)[1])
        return stream

    monkeypatch.setattr(rewriting, "_advance", advance)
    store.session("long").forget(ids[:1])
    said = session.messages()
    assert said[-1].content == "said meanwhile" and len(said) == 1100 and store.verify() == ([], [])


@slow_on_a_server
def test_a_session_that_is_rewritten_while_the_rest_moves_is_planned_anew(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = told(store, "long", 1100)
    real, times = rewriting._advance, []

    def advance(db: SqliteTransaction, **options: Any) -> int:
        stream = real(db, **options)
        if not times:
            row = db.collection(options["row"].id)
            assert row is not None
            rewriting.cut(db, row, 1050, lineage.messages(db, lineage.of(db, row), 1049, 1050)[0].tokens[1])
        times.append(stream)
        return stream

    monkeypatch.setattr(rewriting, "_advance", advance)
    store.session("long").forget(ids[:1])
    assert [message.id for message in store.session("long").messages()] == ids[1:1050]
    with store.database.reading() as db:
        assert db.drafted() == []
    MemoryStore(store.folder).close()
    with store.database.reading() as db:
        assert len(times) > 2 and db.erasures() == []
        assert db.execute("SELECT count(*) FROM streams").fetchone() == (1,)
    assert store.verify() == ([], [])


@in_a_folder
def test_readers_that_follow_one_another_do_not_hold_an_erasure_up(store: MemoryStore) -> None:
    """There is a reader at every moment, each for a moment only."""
    path = store.folder.parent / "journal"
    session = store.session("shared", MODEL)
    (id,) = session.add(user("a secret that is read all the time"))
    readers = [start(crash_worker.look, str(store.folder), 20.0, str(path)) for _ in range(2)]
    time.sleep(1)
    session.forget([id])
    assert not holds(store, b"a secret that is read")
    for reader in readers:
        reader.kill()


@in_a_folder
def test_a_reader_that_stays_is_named_and_others_write_meanwhile(store: MemoryStore) -> None:
    session, other = store.session("alice", MODEL), MemoryStore(store.folder, timeout=0.3)
    ids = session.add([user("a secret"), user("more")])
    mine = other.session("alice", MODEL)
    with store.database.reading() as db:
        assert db.collections("session")
        with pytest.raises(SessionBusyError, match=r"gone from the record .* not overwritten yet"):
            mine.forget(ids[:1])
        other.session("bob", MODEL).add(user("nobody holds me up"))
    other.close()
    MemoryStore(store.folder).close()
    assert not holds(store, b"a secret")


@in_a_folder
@pytest.mark.slow
def test_the_log_stays_small_under_readers_that_overlap(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_CHECKPOINT_BYTES", 50_000)
    monkeypatch.setattr(database, "_LARGEST_LOG", 100_000)
    session, path = store.session("shared", MODEL), store.folder.parent / "journal"
    readers = [start(crash_worker.look, str(store.folder), 30.0, f"{path}-{at}") for at in range(2)]
    time.sleep(1)
    largest = 0
    for turn in range(20):
        session.add(user(f"{turn} " + "word " * 100))
        largest = max(largest, log_bytes(store))
    for reader in readers:
        reader.kill()
    assert largest < 1_000_000, "20 such messages write several times as much"


@pytest.mark.slow
def test_the_log_of_a_database_behind_a_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_CHECKPOINT_BYTES", 50_000)
    monkeypatch.setattr(database, "_LARGEST_LOG", 100_000)
    (tmp_path / "far").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "memory.db").symlink_to(tmp_path / "far" / "real.db")
    with MemoryStore(tmp_path / "store") as store:
        session = store.session("alice", MODEL)
        for turn in range(20):
            session.add(user(f"{turn} " + "word " * 100))
        assert (tmp_path / "far" / "real.db-wal").stat().st_size < 200_000, "20 such messages write several times as much"


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_an_erasure_that_another_process_is_at_is_left_to_it(store: MemoryStore) -> None:
    told(store, "long", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "finish_erasing", lambda erasure: None)
        store.delete("long")
    with store.database.reading() as db:
        (erasure,) = db.erasures()
    with store.database.lock(f"erasure-{erasure}"):
        MemoryStore(store.folder, timeout=0.1).close()
        with store.database.reading() as db:
            assert db.erasures() == [erasure]
    MemoryStore(store.folder).close()
    with store.database.reading() as db:
        assert db.erasures() == []


def test_a_draft_that_somebody_is_writing_is_left_alone(store: MemoryStore) -> None:
    told(store, "long", 10)
    row = store.session("long")._id
    with store.database.writing() as db:
        db.add_draft(lineage.add_stream(db), row)
    with store.database.lock(f"session-{row}"):
        MemoryStore(store.folder, timeout=0.1).close()
        with store.database.reading() as db:
            assert db.drafted() == [row]
    MemoryStore(store.folder).close()
    with store.database.reading() as db:
        assert db.drafted() == [] and db.execute("SELECT count(*) FROM streams").fetchone() == (1,)


# --- a full disk ------------------------------------------------------------------------------------------------------


@in_a_folder
def test_what_makes_room_works_on_a_full_disk(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written until the room that is kept for erasing is given up."""
    ids = told(store, "alice", 20)
    told(store, "bob", 20)
    reserve, plain = store.folder / "reserve", Database.writing

    def writing(self: Database) -> Any:
        if reserve.exists():
            raise StoreFullError("the disk is full. Free some space.")
        return plain(self)

    assert reserve.stat().st_size == 4 << 20
    monkeypatch.setattr(Database, "writing", writing)
    with pytest.raises(StoreFullError):
        store.session("carol", MODEL)
    store.session("alice").forget(ids[:5])
    assert not reserve.exists()
    files.keep_reserve(store.folder)
    store.delete("bob")
    assert store.sessions() == ["alice"] and len(store.session("alice").messages()) == 15
    monkeypatch.undo()
    assert store.verify() == ([], []) and not holds(store, b"secret-bob")
    store.close()
    MemoryStore(store.folder).close()
    assert reserve.exists(), "room is kept again once there is some"


# --- what is left of rewritten sessions, and what fails ----------------------------------------------------------------


@pytest.mark.slow
def test_memory_after_many_rewritings_is_that_of_a_fresh_session(store: MemoryStore, tmp_path: Path) -> None:
    session, chance = store.session("alice", MODEL), random.Random(2)
    ids = [id for turn in range(30) for id in session.add(user(f"turn {turn} " * 4))]
    for _ in range(12):
        session.forget([ids.pop(chance.randrange(len(ids)))])
        session.reply(user("and?"), **DECODING).finish()
    with store.database.reading() as db:
        assert len(lineage.of(db, session._row(db))) == 1
    session.export(tmp_path / "export")
    fresh = store.import_session(tmp_path / "export", name="fresh").rebuild(MODEL)
    np.testing.assert_allclose(memory_of(session), memory_of(fresh), atol=2e-3)
    with pytest.raises(SessionNotFoundError, match="no message"):
        session.forget([ids[0], 10_000])


def test_a_wrong_step_is_an_error_that_is_told(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (id,) = store.session("alice", MODEL).add(user("hello"))
    monkeypatch.setattr(sweeping, "_sweep", lambda *_: (_ for _ in ()).throw(StoreError("the disk fails. Replace it.")))
    with pytest.raises(StoreError, match=r"gone from the record .*the disk fails.*tried again"):
        store.session("alice").forget([id])


def test_streams_that_are_still_to_be_swept_are_not_joined(store: MemoryStore) -> None:
    """Rows that nobody shows any more would go over to where nobody looks for them."""
    session = store.session("alice", MODEL)
    ids = [id for turn in range(12) for id in session.add(user(f"turn {turn}"))]
    session.fork("fork")
    session.forget(ids[8:9])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "finish_erasing", lambda erasure: None)
        session.forget(ids[10:11])
        store.delete("fork")
    session.forget(ids[11:])
    MemoryStore(store.folder).close()
    session.forget(ids[9:10])
    with store.database.reading() as db:
        (kept,) = db.execute("SELECT count(*) FROM messages").fetchone()
        assert db.erasures() == []
    assert kept == len(session.messages()) == 8 and store.verify() == ([], [])
