"""Connections, transactions, processes and servers that end in the middle: nothing is lost, and nothing is doubled."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import crash_worker
import postgres
import postgres_worker
import psycopg
import pytest
from postgres import Wire, once, own_server
from processes import journal_of, start
from stored import FAST, memory_of, user
from tiny import LONG

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import (
    OutcomeUnknownError,
    SessionBusyError,
    StoreError,
    StoreFullError,
    StoreInterruptedError,
)
from hmt_memory.store import lineage, rewriting, sweeping
from hmt_memory.store.postgres import database as postgres_database
from hmt_memory.store.postgres.connections import Connection
from hmt_memory.store.postgres.transaction import PostgresTransaction

MODEL = crash_worker.MODEL


@pytest.fixture
def store(postgres_url: str) -> Iterator[MemoryStore]:
    with MemoryStore(postgres_url, timeout=5) as opened:
        yield opened


def texts(session: Session) -> list[str]:
    return [message.content for message in session.messages()]


def test_lost_connections_that_nobody_used_are_replaced(store: MemoryStore, postgres_url: str) -> None:
    session = store.session("alice", MODEL)
    session.add(user("one"))
    postgres.cut(postgres_url)
    session.add(user("two"))
    postgres.cut(postgres_url)
    assert texts(session) == ["one", "two"] and session.recall("one")


@pytest.mark.parametrize("step", ["writing the message", "before the commit", "reading what was said"])
def test_an_append_whose_connection_is_lost_is_stored_once(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    session = store.session("alice", MODEL)
    session.add(user("first"))
    owner, name = {
        "writing the message": (lineage, "append_messages"),
        "before the commit": (type(store.database), "_commit"),
        "reading what was said": (lineage, "tokens"),
    }[step]
    calls = once(monkeypatch, owner, name, lambda: postgres.cut(postgres_url))
    ids = session.add(user("second " + "word " * 30))
    assert calls[0] > 0 and [message.id for message in session.messages()] == [1, *ids] and store.verify() == ([], [])
    assert memory_of(session).shape[0] > 0


def test_a_commit_that_is_not_acknowledged_is_found(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has stored it, and its answer is lost on the way."""
    session, real, lost = store.session("alice", MODEL), Connection.execute, []

    def execute(self: Connection, query: Any, *arguments: Any, **options: Any) -> Any:
        result = real(self, query, *arguments, **options)
        if query == "COMMIT" and not lost:
            lost.append(self)
            postgres.cut(postgres_url)
            return real(self, "SELECT 1")
        return result

    monkeypatch.setattr(Connection, "execute", execute)
    assert session.add(user("once")) == [1]
    assert lost and texts(session) == ["once"] and store.verify() == ([], [])


def test_an_answer_whose_connection_is_lost_is_stored_once(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.session("alice", MODEL)
    once(monkeypatch, Session, "_append", lambda: postgres.cut(postgres_url))
    reply = session.reply(user("what?"), **FAST).finish()
    assert [message.id for message in session.messages()] == reply.message_ids == [1, 2]


def test_a_server_that_does_not_come_back_leaves_the_outcome_open(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = store.session("alice", MODEL)

    def end() -> None:
        postgres.cut(postgres_url)
        monkeypatch.setattr(type(store.database), "_connect", unreachable)

    def unreachable(_: Any) -> Any:
        raise psycopg.OperationalError("it cannot be reached")

    monkeypatch.setattr(postgres_database, "_ASKING_SECONDS", 0)
    monkeypatch.setattr(store.database, "timeout", 0.1)
    once(monkeypatch, type(store.database), "_commit", end)
    with pytest.raises(OutcomeUnknownError, match="no server says"):
        session.add(user("one"))


def test_a_lost_connection_is_no_damage(store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.session("alice", MODEL).add(user("word " * 30))
    with monkeypatch.context() as patch:
        calls = once(patch, lineage, "tokens", lambda: postgres.cut(postgres_url))
        assert store.verify() == ([], []) and calls[0] == 2
    monkeypatch.setattr(store.database, "timeout", 0)
    once(monkeypatch, lineage, "tokens", lambda: postgres.cut(postgres_url))
    with pytest.raises(StoreInterruptedError):
        store.verify()


@pytest.mark.parametrize("skip", range(6))
def test_forgetting_goes_on_after_a_lost_connection(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch, skip: int
) -> None:
    """At each of its transactions: the draft's, the switch, the sweeps."""
    monkeypatch.setattr(rewriting, "_TOGETHER", 2)
    session = store.session("alice", MODEL)
    ids = session.add([user(f"secret {number}") for number in range(6)])
    calls = once(monkeypatch, type(store.database), "_commit", lambda: postgres.cut(postgres_url), skip=skip)
    try:
        assert session.forget(ids[1:2]).messages == 1
    except StoreError as error:
        assert not isinstance(error, StoreInterruptedError) and "gone from the record" in str(error)
    assert calls[0] > skip
    assert [message.id for message in session.messages()] == [ids[0], *ids[2:]]
    store.close()
    with MemoryStore(postgres_url) as again:
        assert again.verify() == ([], []) and not found(postgres_url, b"secret 1") and found(postgres_url, b"secret 2")
        with again.database.reading() as db:
            assert db.erasures() == [] and db.drafted() == []


def found(url: str, secret: bytes) -> bool:
    """Return whether any content in the database holds these bytes."""
    return any(secret in data for (data,) in postgres.run(url, "SELECT data FROM payloads"))


def test_whoever_has_lost_a_lock_cannot_write(store: MemoryStore, postgres_url: str) -> None:
    """Its lock is another's by then."""
    with MemoryStore(postgres_url, timeout=5) as other, store.database.lock("mine"):
        with store.database.writing() as db:
            db.set_fact("half", "1")
        postgres.cut(postgres_url)
        with other.database.lock("mine"):
            with pytest.raises(StoreInterruptedError, match="nothing of this was stored"), store.database.writing() as db:
                db.set_fact("half", "2")
            with other.database.reading() as db:
                assert db.fact("half") == "1"


def test_a_lock_and_a_transaction_end_with_their_process(store: MemoryStore, postgres_url: str, tmp_path: Path) -> None:
    holder = start(postgres_worker.hold_and_wait, postgres_url, "mine", str(tmp_path / "journal"))
    deadline = time.monotonic() + 60
    while not journal_of(tmp_path / "journal"):
        assert time.monotonic() < deadline and holder.is_alive()
        time.sleep(0.02)
    with pytest.raises(SessionBusyError), store.database.lock("mine", timeout=0):
        pass
    holder.kill()
    holder.join()
    with store.database.lock("mine"), store.database.reading() as db:
        assert db.fact("half") is None
    store.session("alice", MODEL).add(user("nobody is in the way"))


def test_two_processes_append_to_one_session(store: MemoryStore, postgres_url: str, tmp_path: Path) -> None:
    journals = [tmp_path / who for who in ("one", "two")]
    workers = [start(crash_worker.write, postgres_url, path.name, 8, str(path)) for path in journals]
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    session = store.session("shared", MODEL)
    ids = sorted(id for path in journals for _, _, added in journal_of(path) for id in added)
    assert [message.id for message in session.messages()] == ids == list(range(1, 17))
    for path in journals:
        mine = [text for text in texts(session) if text.startswith(path.name)]
        assert mine == [f"{path.name} {turn} and some more words" for turn in range(8)]
    assert store.verify() == ([], [])


def failing(store: MemoryStore, code: str) -> Callable[[Any], None]:
    """Return work that the server ends with an error the first time."""
    tried: list[int] = []

    def work(db: PostgresTransaction) -> None:
        db.set_fact("tried", str(len(tried)))
        tried.append(1)
        if len(tried) == 1:
            db.one(f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$")

    return work


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_a_transaction_that_the_server_could_not_order_is_made_again(store: MemoryStore, code: str) -> None:
    store.database.write(failing(store, code))
    with store.database.reading() as db:
        assert db.fact("tried") == "1"


def test_inside_a_lock_nothing_is_made_again(store: MemoryStore) -> None:
    with store.database.lock("mine"), pytest.raises(StoreInterruptedError):
        store.database.write(failing(store, "40001"))


def test_a_full_disk_is_told_from_a_lost_server(store: MemoryStore) -> None:
    with pytest.raises(StoreFullError, match="Free some space"):
        store.database.write(failing(store, "53100"))
    with store.database.reading() as db:
        assert db.fact("tried") is None


def test_an_erasure_left_by_a_killed_connection_is_taken_up(
    store: MemoryStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.session("alice", MODEL).add(user("a secret"))
    with monkeypatch.context() as patch:
        patch.setattr(store.database, "timeout", 0.2)
        patch.setattr(sweeping, "_go_through", lambda *_: (_ for _ in ()).throw(SessionBusyError("somebody")))
        with pytest.raises(SessionBusyError):
            store.delete("alice")
    assert found(postgres_url, b"a secret")
    MemoryStore(postgres_url).close()
    assert not found(postgres_url, b"a secret")


def keep_adding(store: MemoryStore, interrupt: Callable[[], None], times: int) -> None:
    """Add in two threads while something is interrupted. What was refused with nothing stored is said again."""
    done, acknowledged = threading.Event(), {who: [] for who in ("one", "two")}

    def work(who: str) -> None:
        session = store.session(who, MODEL)
        while not done.is_set():
            text = f"{who} {len(acknowledged[who])}"
            with contextlib.suppress(StoreInterruptedError):
                session.add(user(text))
                acknowledged[who].append(text)

    threads = [threading.Thread(target=work, args=(who,)) for who in acknowledged]
    for thread in threads:
        thread.start()
    for _ in range(times):
        before = sum(map(len, acknowledged.values()))
        interrupt()
        while sum(map(len, acknowledged.values())) == before and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    for who, told in acknowledged.items():
        assert texts(store.session(who)) == told and told
    assert store.verify() == ([], [])


@pytest.mark.long
def test_a_server_that_crashes_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "caches"))
    with closing(own_server()) as server, MemoryStore(server.get_uri(), timeout=20) as store:
        keep_adding(store, server.crash_and_recover, 20)


@pytest.mark.long
def test_a_standby_that_takes_over_has_all_that_was_acknowledged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is synchronous, and the address names both servers."""
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "caches"))
    with closing(own_server(synchronous_standby_names="standby")) as primary, closing(primary.copied()) as standby:
        primary.wait_for("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'")

        def fail_over() -> None:
            primary.crash()
            standby.promote()

        url = f"postgresql://postgres@/postgres?host={primary.folder},{standby.folder}&target_session_attrs=read-write"
        with MemoryStore(url, timeout=60) as store:
            keep_adding(store, fail_over, 1)
        with MemoryStore(standby.get_uri()) as store:
            assert store.sessions() == ["one", "two"] and store.verify() == ([], [])


def test_a_network_that_is_cut_loses_and_doubles_nothing(postgres_url: str) -> None:
    chance = random.Random(1)

    def cut() -> None:
        time.sleep(chance.uniform(0, 0.1))
        wire.cut()

    with closing(Wire(postgres_url)) as wire, MemoryStore(wire.url, timeout=20) as store:
        keep_adding(store, cut, 200 if LONG else 8)


def test_a_forked_process_leaves_its_parents_connections_alone(store: MemoryStore, postgres_url: str, tmp_path: Path) -> None:
    worker = start(crash_worker.fork_and_write, postgres_url, str(tmp_path / "journal"))
    worker.join(120)
    (_, child, reused), (_, parent, status, problems) = journal_of(tmp_path / "journal")
    assert not reused and (worker.exitcode, status, problems) == (0, 0, [])
    assert set(child) <= set(parent) and sorted(parent) == sorted(
        ["before", *(f"{who} {turn}" for who in ("parent", "child") for turn in range(5))]
    )
