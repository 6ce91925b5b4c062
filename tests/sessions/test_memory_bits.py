"""Memories stored in 8 bits: chosen when a session or corpus is made, carried wherever it goes, never misread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import pack, parts_of
from stored import DECODING, memory_of, user
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import MemoryStore, Session
from hmt_memory.engine.mxint8 import held
from hmt_memory.errors import ConfigError, StoreDamagedError
from hmt_memory.sessions import backup
from hmt_memory.store import lineage
from hmt_memory.store.rows import SegmentRow

MODEL = light_model(config=replace(REMEMBERING, key_dim=6), tokenizer=byte_tokenizer())
OTHER = light_model(config=replace(REMEMBERING, key_dim=6), tokenizer=byte_tokenizer(), seed=3)
TOLD = [user("the boat is called Ada and lies in the harbour"), user("my sister lives in a house by the river")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store", memory_bits=8) as opened:
        yield opened


@pytest.fixture
def session(store: MemoryStore) -> Session:
    session = store.session("alice", MODEL)
    session.add(TOLD)
    return session


def segments(session: Session) -> list[SegmentRow]:
    with session._database.reading() as db:
        parts = lineage.of(db, session._row(db))
        return list(lineage.segments(db, parts, 0, lineage.segment_count(db, parts)))


def are_packed(session: Session) -> bool:
    """Whether all segments are in 8 bits, or none; never some."""
    rows = segments(session)
    assert len(rows) > 3 and len({row.bits for row in rows}) == 1
    if rows[0].bits == 8:
        assert all(held(row.memory) and row.keys is not None and held(row.keys) for row in rows)
    assert session.stats()["memory_bits"] == rows[0].bits
    return rows[0].bits == 8


def test_memories_take_half_the_room_and_differ_a_little(session: Session, store: MemoryStore, tmp_path: Path) -> None:
    with MemoryStore(tmp_path / "usual") as other:
        usual = other.session("alice", MODEL)
        usual.add(TOLD)
        assert are_packed(session) and not are_packed(usual)
        one, two = memory_of(session), memory_of(usual)
        assert 0.995 < one @ two / np.linalg.norm(one) / np.linalg.norm(two) < 1
        sizes = [each.database.read(lambda db: db.one("SELECT sum(memory_size) FROM segments")[0]) for each in (store, other)]
        rows = segments(session)
        assert sizes[1] == sum(len(row.memory + (row.keys or b"")) for row in rows)
        assert sizes[0] == sizes[1] // 2 + sum(-(-len(data) // 64) for row in rows for data in (row.memory, row.keys or b""))
    assert store.verify().ok


def test_what_is_reopened_is_what_was(session: Session, store: MemoryStore, tmp_path: Path) -> None:
    """Also a copy that read on without a break: the state in memory holds what is stored."""
    said = session.reply(user("Where is the boat?"), **DECODING).finish()
    found = session.recall("the boat")
    with MemoryStore(tmp_path / "store") as again:
        reopened = again.session("alice", MODEL)
        np.testing.assert_array_equal(memory_of(reopened), memory_of(session))
        assert [(one.text, one.weight) for one in reopened.recall("the boat")] == [(one.text, one.weight) for one in found]
        reopened.forget(said.message_ids)
        assert reopened.reply(user("Where is the boat?"), **DECODING).finish().text == said.text


def test_sessions_keep_their_bits_whoever_opens_them(session: Session, store: MemoryStore, tmp_path: Path) -> None:
    with MemoryStore(tmp_path / "store") as usual:
        usual.session("bob", MODEL).add(TOLD)
        usual.session("alice", MODEL).add(user("and the cat sleeps on the roof all day"))
    for name, packed in (("alice", True), ("bob", False)):
        opened = store.session(name, MODEL)
        opened.add(user("one more thing to be read into memory"))
        assert are_packed(opened) == packed
        fork = opened.fork(f"{name} again")
        fork.add(user("a fork goes its own way from here on"))
        assert are_packed(fork) == packed
        assert opened.recall("boat") and fork.recall("boat")
    assert store.verify().ok


def test_a_rebuild_keeps_the_bits_or_takes_those_that_were_chosen(session: Session, tmp_path: Path) -> None:
    for bits, packed in ((None, True), (16, False), (None, False), (8, True)):
        with MemoryStore(tmp_path / "store", memory_bits=bits) as opened:
            rebuilt = opened.session("alice").rebuild(OTHER if bits else MODEL)
            assert isinstance(rebuilt, Session) and are_packed(rebuilt) == packed
            opened.session("alice").rebuild(MODEL)
            assert opened.verify().ok


def test_a_corpus_has_them_too(store: MemoryStore, tmp_path: Path) -> None:
    corpus = store.corpus("papers", MODEL)
    corpus.add_documents(["the first text of the handbook, four segments and a bit", "short"])
    assert corpus.stats()["memory_bits"] == 8 and corpus.recall("the handbook")
    with MemoryStore(tmp_path / "store", memory_bits=16) as other:
        assert other.corpus("papers").rebuild(MODEL).stats()["memory_bits"] == 16
    with store.database.reading() as db:
        assert db.all("SELECT DISTINCT bits FROM segments WHERE stream IN (SELECT stream FROM documents)") == [(None,)]


def test_an_export_carries_them(session: Session, store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "alice.hmt"
    session.export(path)
    manifest = json.loads(parts_of(path)["manifest.json"])
    assert (manifest["version"], manifest["memory_bits"]) == (3, 8)
    with MemoryStore(tmp_path / "other") as other:
        imported = other.import_session(path, model=MODEL)
        np.testing.assert_array_equal(memory_of(imported), memory_of(session))
        imported.add(user("and what is said later is of 8 bits as well"))
        assert are_packed(imported) and other.verify().ok


def test_an_export_that_is_finer_than_it_says_is_refused(session: Session, store: MemoryStore, tmp_path: Path) -> None:
    session.export(tmp_path / "alice.hmt")
    parts = parts_of(tmp_path / "alice.hmt")
    memory = np.frombuffer(parts["memory.f16"], "<f2").copy()
    memory[5] = np.nextafter(memory[np.abs(memory).argmax()], np.float16(0), dtype=np.float16)
    forged = pack(tmp_path / "forged", parts | {"memory.f16": memory.tobytes()})
    with pytest.raises(StoreDamagedError, match="a memory embedding is finer than 8 bits"):
        store.import_session(forged, name="forged")
    for bits in (4, "8", None, True):
        with pytest.raises(StoreDamagedError, match="bits of its memories are not 8 or 16"):
            store.import_session(pack(tmp_path / "odd", parts, memory_bits=bits), name="odd")
    usual = pack(tmp_path / "usual", parts, memory_bits=16)
    assert store.import_session(usual, name="usual").stats()["memory_bits"] == 16


def test_a_backup_carries_them(session: Session, store: MemoryStore, tmp_path: Path) -> None:
    store.backup(tmp_path / "copy")
    with backup.Storage(tmp_path / "copy"), MemoryStore(tmp_path / "copy") as copy:
        again = copy.session("alice", MODEL)
        assert are_packed(again)
        np.testing.assert_array_equal(memory_of(again), memory_of(session))


@pytest.mark.parametrize("change", ["bits = NULL", "bits = 16", "memory_size = memory_size - 1", "keys_size = 2"])
def test_a_row_is_not_read_in_other_bits_than_its_own(session: Session, tmp_path: Path, change: str) -> None:
    db = sqlite3.connect(tmp_path / "store" / "memory.db", isolation_level=None)
    assert db.execute(f"UPDATE segments SET {change} WHERE seq = 1").rowcount == 1
    db.close()
    with pytest.raises(StoreDamagedError, match="segment 1 of stream"):
        segments(session)


def test_rows_of_the_second_schema_are_read_as_they_were(tmp_path: Path) -> None:
    with MemoryStore(tmp_path / "store") as store:
        store.session("alice", MODEL).add(TOLD)
        before = memory_of(store.session("alice", MODEL))
    db = sqlite3.connect(tmp_path / "store" / "memory.db", isolation_level=None)
    db.execute("ALTER TABLE segments DROP COLUMN bits")
    db.execute("PRAGMA user_version = 2")
    db.close()
    with MemoryStore(tmp_path / "store", memory_bits=8) as store:
        session = store.session("alice", MODEL)
        np.testing.assert_array_equal(memory_of(session), before)
        session.add(user("what is added later is of 16 bits as well"))
        assert not are_packed(session) and store.verify().ok


def test_the_environment_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_MEMORY_BITS", "8")
    for bits, found in ((None, 8), (16, 16)):
        with MemoryStore(tmp_path / str(found), memory_bits=bits) as store:
            assert store.session("alice", MODEL).stats()["memory_bits"] == found
    with pytest.raises(ConfigError, match="memories of 4 bits"):
        MemoryStore(tmp_path / "store", memory_bits=4)
    monkeypatch.setenv("HMT_MEMORY_BITS", "lots")
    with pytest.raises(ConfigError, match="Set memory_bits, or HMT_MEMORY_BITS, to 8 or 16"):
        MemoryStore(tmp_path / "store")
    assert not (tmp_path / "store").exists()
