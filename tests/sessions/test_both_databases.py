"""What a store does for its users, on each kind of database: the same calls, the same results, the same bytes of memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import crash_worker
import numpy as np
import postgres
import pytest
from store_conformance import session as rows_of_a_session
from stored import FAST, memory_of, tokens_of, user

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import (
    InputError,
    ModelMismatchError,
    SessionExistsError,
    SessionNotFoundError,
    StoreDamagedError,
    StoreError,
)
from hmt_memory.store import rewriting
from hmt_memory.store.backend import Capability

MODEL = crash_worker.MODEL
LONG_TEXT = "the quick brown fox jumps over the lazy dog " * 6


@pytest.fixture
def store(place: Path | str) -> Iterator[MemoryStore]:
    with MemoryStore(place, timeout=5) as opened:
        yield opened


def texts(session: Session) -> list[str]:
    return [message.content for message in session.messages()]


def told(store: MemoryStore, name: str = "alice") -> Session:
    session = store.session(name, MODEL)
    session.add([{"role": "system", "content": "be brief"}, user("the key is under the pot"), user(LONG_TEXT)])
    session.add(user("another thing\x00 with é and 😀"))
    return session


def test_what_was_said_is_there_when_the_store_is_opened_again(store: MemoryStore) -> None:
    session = told(store)
    reply = session.reply(user("where?"), **FAST).finish()
    before, memory = session.messages(), memory_of(session)
    store.close()
    with MemoryStore(store.folder) as again:
        session = again.session("alice", MODEL)
        assert session.messages() == before and before[-1].id == reply.message_ids[-1] and session.system() == "be brief"
        np.testing.assert_array_equal(memory_of(session), memory)
        assert session.recall("key", top_k=1) and again.verify() == ([], [])


def test_both_databases_hold_the_same_bytes(tmp_path: Path, postgres_url: str) -> None:
    found = []
    for place in (tmp_path / "store", postgres_url):
        with MemoryStore(place, clock=lambda: 1000.5) as store:
            session = told(store)
            session.forget([2])
            recalled = [(hit.segment, hit.text, hit.weight) for hit in session.recall("lazy", top_k=3)]
            found.append((tokens_of(session), memory_of(session).tobytes(), session.messages(), recalled, session.stats()))
    assert found[0] == found[1]


def test_forks_share_and_go_their_own_ways(store: MemoryStore) -> None:
    session = told(store)
    fork = session.fork("bob", upto=2)
    fork.add(user("only bob"))
    session.add(user("only alice"))
    assert texts(fork)[1:] == ["the key is under the pot", "only bob"] and "only bob" not in texts(session)
    assert session.forget([2]).also_in == ("bob",)
    assert "the key is under the pot" not in texts(session) and "the key is under the pot" in texts(fork)
    store.delete("alice")
    assert texts(fork)[1:] == ["the key is under the pot", "only bob"] and store.verify() == ([], [])


def test_forgetting_leaves_what_never_heard_it(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "_TOGETHER", 2)
    session, fresh = store.session("alice", MODEL), store.session("fresh", MODEL)
    ids = session.add([user(f"number {number} " + "word " * 9) for number in range(8)])
    fresh.add([user(f"number {number} " + "word " * 9) for number in range(8) if number not in (2, 5)])
    session.forget([ids[2], ids[5]])
    assert tokens_of(session) == tokens_of(fresh)
    np.testing.assert_allclose(memory_of(session), memory_of(fresh), atol=2e-3)
    assert store.verify() == ([], [])


def test_an_answer_takes_the_place_of_another(store: MemoryStore) -> None:
    session = told(store)
    first = session.reply(user("where?"), **FAST).finish()
    second = session.reply(user("where, then?"), replacing=first.message_ids[0], **FAST).finish()
    assert [message.id for message in session.messages()][-2:] == second.message_ids and "where?" not in texts(session)


def test_limits_are_kept(store: MemoryStore) -> None:
    session = store.session("alice", MODEL)
    session.add([user(str(number)) for number in range(12)])
    session.set_retention(messages=4)
    assert len(session.messages()) <= 4 and texts(session)[-1] == "11"
    session.set_retention(age=timedelta(days=1))
    assert texts(session)[-1] == "11"


def test_an_export_is_a_session_of_any_store(store: MemoryStore, tmp_path: Path) -> None:
    session = told(store)
    session.export(tmp_path / "alice.hmt")
    with MemoryStore(tmp_path / "another") as other:
        there = other.import_session(tmp_path / "alice.hmt", model=MODEL)
        assert there.messages() == session.messages()
        np.testing.assert_array_equal(memory_of(there), memory_of(session))
        there.export(tmp_path / "back.hmt")
    back = store.import_session(tmp_path / "back.hmt", name="back", model=MODEL)
    assert back.messages() == session.messages() and store.verify() == ([], [])


def test_corpora(store: MemoryStore) -> None:
    corpus = store.corpus("papers", MODEL)
    ids = corpus.add_documents([LONG_TEXT, "the cat sleeps on the mat " * 5])
    session = told(store)
    session.attach("papers")
    assert session.stats()["corpora"] == ["papers"] and len(corpus.documents()) == 2
    assert any("mat" in hit.text for hit in corpus.recall("mat", top_k=3))
    corpus.remove(ids[:1])
    assert [document.id for document in corpus.documents()] == ids[1:]
    store.rename_corpus("papers", "books")
    assert store.corpora() == ["books"] and session.stats()["corpora"] == ["books"]
    store.delete_corpus("books")
    assert store.corpora() == [] and store.verify() == ([], [])


def test_names(store: MemoryStore) -> None:
    session = told(store)
    with pytest.raises(SessionExistsError):
        session.fork("alice")
    store.rename("alice", "älice")
    assert store.sessions() == ["älice"] and store.search("key")[0].source == "älice"
    with pytest.raises(SessionNotFoundError, match="there is no session 'alice' in"):
        store.session("alice")


def test_another_model_is_refused(store: MemoryStore, model: object) -> None:
    told(store)
    with pytest.raises(ModelMismatchError):
        store.session("alice", model)


def test_the_room_of_what_was_erased_is_given_back(store: MemoryStore) -> None:
    rows_of_a_session(store.database, "long", 500)
    rows_of_a_session(store.database, "short", 20)
    store.delete("long")
    assert store.compact() > 30_000 and store.vacant_bytes() == 0
    assert len(store.session("short").messages()) == 20


def test_a_backup_is_a_folder(store: MemoryStore, tmp_path: Path) -> None:
    session = told(store)
    session.fork("bob", upto=2)
    store.corpus("papers", MODEL).add_documents([LONG_TEXT])
    store.backup(tmp_path / "copy")
    store.delete("alice")
    with MemoryStore(tmp_path / "copy") as copy:
        assert copy.sessions() == ["alice", "bob"] and copy.corpora() == ["papers"] and copy.verify() == ([], [])
        new = copy.session("alice", MODEL)
        assert len(new.messages()) == 4 and new.add(user("it goes on")) == [5]
        assert copy.session("new", MODEL).add(user("another")) == [1]
    with pytest.raises(InputError, match="is there already"):
        store.backup(tmp_path / "copy")


def test_a_store_moves_into_a_database(store: MemoryStore, postgres_server: Any, tmp_path: Path) -> None:
    """From whichever, with what was erased left out, and its ids go on."""
    session, url = told(store), postgres.new_store(postgres_server)
    session.forget([2])
    session.fork("bob")
    before, memory = session.messages(), memory_of(session)
    try:
        store.backup(url)
        with MemoryStore(url) as copy:
            there = copy.session("alice", MODEL)
            assert there.messages() == before and copy.sessions() == ["alice", "bob"] and copy.verify() == ([], [])
            np.testing.assert_array_equal(memory_of(there), memory)
            assert there.add(user("it goes on")) == [5] and copy.session("new", MODEL).add(user("another")) == [1]
        with pytest.raises(InputError, match="holds something"):
            store.backup(url)
    finally:
        postgres.drop(url)


@pytest.mark.parametrize("to", ["folder", "database", "folder, over a database"])
def test_a_number_that_was_given_is_not_given_again_in_a_copy(
    store: MemoryStore, postgres_server: Any, tmp_path: Path, to: str
) -> None:
    told(store).attach(store.corpus("old", MODEL).name)
    for name in ("a", "b"):
        store.session(name, MODEL)
        store.delete(name)
    store.delete_corpus("old")
    url = postgres.new_store(postgres_server)
    try:
        place: Path | str = tmp_path / "copy" if to == "folder" else url
        store.backup(place)
        if to == "folder, over a database":
            with MemoryStore(url) as between:
                between.backup(place := tmp_path / "copy")
        with MemoryStore(place) as copy:
            copy.corpus("another", MODEL).add_documents([LONG_TEXT])
            assert copy.session("alice").stats()["corpora"] == []
            assert copy.session("new", MODEL).number == 6 and copy.verify() == ([], [])
    finally:
        postgres.drop(url)


def test_a_store_may_only_be_looked_at(store: MemoryStore) -> None:
    told(store)
    with MemoryStore(store.folder, read_only=True) as looked_at:
        session = looked_at.session("alice")
        assert len(session.messages()) == 4
        with pytest.raises(StoreError, match="read-only"):
            session.fork("bob")


def damage(store: MemoryStore, place: Path | str) -> None:
    statement = "UPDATE messages SET created_at = created_at + 1 WHERE id = 2"
    if isinstance(place, str):
        postgres.run(place, statement)
    else:
        with store.database.writing() as db:
            db.execute(statement)


def test_damage_is_told(store: MemoryStore, place: Path | str) -> None:
    session = told(store)
    damage(store, place)
    with pytest.raises(StoreDamagedError, match="message 2 is damaged"):
        session.messages()
    assert not store.verify().ok


def test_a_copy_that_is_not_whole_is_not_left_in_a_database(
    store: MemoryStore, place: Path | str, postgres_server: Any, tmp_path: Path
) -> None:
    told(store).fork("bob", upto=2)
    store.backup(tmp_path / "good")
    damage(store, place)
    url = postgres.new_store(postgres_server)
    try:
        with pytest.raises(StoreDamagedError, match="is not whole"):
            store.backup(url)
        with MemoryStore(tmp_path / "good") as good:
            good.backup(url)
        with MemoryStore(url) as copy:
            assert copy.sessions() == ["alice", "bob"] and copy.verify() == ([], [])
    finally:
        postgres.drop(url)


def test_what_is_promised_of_erasing_can_be_asked(store: MemoryStore, place: Path | str) -> None:
    assert Capability.ERASES_ROWS in store.capabilities
    assert (Capability.ERASES_BYTES in store.capabilities) == isinstance(place, Path)
