"""PostgreSQL does what any database of a store has to do, and what only a server can be asked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import crash_worker
import numpy as np
import postgres
import pytest
from store_conformance import RecordStoreConformance
from stored import memory_of, user

from hmt_memory import MemoryStore
from hmt_memory.errors import StoreError
from hmt_memory.store.backend import Backend, Capability
from hmt_memory.store.open import open_backend
from hmt_memory.store.postgres.transaction import CONTENT, PostgresTransaction
from hmt_memory.store.sql import migrations

MODEL = crash_worker.MODEL


@pytest.fixture
def backend(postgres_url: str) -> Iterator[Backend]:
    opened = open_backend(postgres_url, timeout=5)
    yield opened
    opened.close()


class TestPostgres(RecordStoreConformance):
    @pytest.fixture(autouse=True)
    def _url(self, postgres_url: str) -> None:
        self.url = postgres_url

    def place(self, backend: Backend) -> Path | str:
        return self.url

    def damage(self, backend: Backend, statement: str) -> None:
        postgres.run(self.url, statement)

    def test_it_erases_rows_and_promises_no_bytes(self, backend: Backend) -> None:
        assert backend.capabilities == {Capability.ERASES_ROWS, Capability.MANY_HOSTS, Capability.GIVES_ROOM_BACK}


# --- what a server has to be asked ------------------------------------------------------------------------------------


def told(url: str, *texts: str) -> list[int]:
    """Say something in a session and search for it, which leaves index files on this machine."""
    with MemoryStore(url) as store:
        session = store.session("alice", MODEL)
        ids = session.add([user(text) for text in texts])
        assert session.recall("word")
    return ids


def index_files(caches: Path) -> set[str]:
    return {path.suffix for path in caches.rglob("1.*")}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Another machine: it has another cache."""

    @contextmanager
    def moved() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setenv("HMT_CACHE", str(tmp_path / "elsewhere"))
            yield

    return moved


def test_index_files_of_what_another_machine_has_erased_are_deleted(
    postgres_url: str, tmp_path: Path, elsewhere: Callable[[], Any]
) -> None:
    ids = told(postgres_url, "quinces " * 9, "word " * 20)
    assert index_files(tmp_path / "caches") >= {".index", ".words"}
    with elsewhere(), MemoryStore(postgres_url) as other:
        other.session("alice").forget(ids[:1])
    MemoryStore(postgres_url).close()
    assert not index_files(tmp_path / "caches")


def test_index_files_of_what_is_being_erased_are_deleted_at_the_latest_by_the_next_opening(
    postgres_url: str, tmp_path: Path, elsewhere: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker opens the store while another has begun to forget, and not ended it."""
    ids, real = told(postgres_url, "quinces " * 9, "word " * 20), PostgresTransaction.begin_erasure
    with elsewhere(), MemoryStore(postgres_url) as other, ThreadPoolExecutor(1) as threads:
        session, opening = other.session("alice"), []

        def begun(db: PostgresTransaction) -> int:
            erasure = real(db)
            if not opening:
                monkeypatch.setenv("HMT_CACHE", str(tmp_path / "caches"))
                opening.append(threads.submit(MemoryStore, postgres_url))
                wait(opening, timeout=1)  # it waits for the writer, or sees what is there still
            return erasure

        monkeypatch.setattr(PostgresTransaction, "begin_erasure", begun)
        session.forget(ids[:1])
        opening[0].result(10).close()
    MemoryStore(postgres_url).close()
    assert opening and not index_files(tmp_path / "caches")


def test_index_files_of_what_stays_are_kept(postgres_url: str, tmp_path: Path, elsewhere: Callable[[], Any]) -> None:
    told(postgres_url, "quinces " * 9, "word " * 20)
    with elsewhere(), MemoryStore(postgres_url) as other:
        other.session("bob", MODEL).add(user("something"))
        other.delete("bob")
    MemoryStore(postgres_url).close()
    assert index_files(tmp_path / "caches") >= {".index", ".words"}


def test_stores_of_one_database_know_nothing_of_each_other(postgres_server: Any, postgres_url: str) -> None:
    another = postgres.new_store(postgres_server)
    try:
        with MemoryStore(postgres_url) as one, MemoryStore(another, timeout=0.5) as two:
            one.session("alice", MODEL).add(user("mine"))
            with one.database.lock("mine"), one.database.exclusive(), two.database.lock("mine"):
                two.session("alice", MODEL).add(user("and mine"))
            assert [message.content for message in one.session("alice").messages()] == ["mine"]
            assert one.database.cache != two.database.cache
    finally:
        postgres.drop(another)


def test_a_role_sees_its_own_schema_only(postgres_server: Any, postgres_url: str) -> None:
    """Tenants: a schema and a role for each."""
    role = "tenant_" + secrets.token_hex(4)
    schema = postgres_url.partition("&schema=")[2]
    postgres.run(postgres_url, f"CREATE ROLE {role} LOGIN")
    postgres.run(postgres_url, f"CREATE SCHEMA {role} AUTHORIZATION {role}")
    theirs = re.sub("//[^@]*@", f"//{role}@", postgres_server.get_uri())
    MemoryStore(postgres_url).close()
    try:
        with MemoryStore(f"{theirs}&schema={role}") as store:
            assert store.session("alice", MODEL).add(user("mine")) == [1] and store.verify() == ([], [])
            assert store.compact() >= 0
        with pytest.raises(StoreError, match="may not use the schema"):
            MemoryStore(f"{theirs}&schema={schema}")
    finally:
        postgres.run(postgres_url, f"DROP OWNED BY {role} CASCADE")
        postgres.run(postgres_url, f"DROP ROLE {role}")


def test_writers_of_a_role_with_another_isolation_see_each_other(postgres_url: str) -> None:
    address, _, schema = postgres_url.partition("&schema=")
    isolation = quote(r"-c default_transaction_isolation=repeatable\ read")
    with MemoryStore(f"{address}&options={isolation}&schema={schema}", timeout=20) as store:

        def work(number: int) -> None:
            session = store.session(f"s{number}", MODEL)
            for turn in range(3):
                session.add(user(f"{turn}"))

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(work, range(6)))
        assert store.verify() == ([], [])


def test_a_schema_of_something_else_is_refused(postgres_url: str) -> None:
    MemoryStore(postgres_url).close()
    postgres.run(postgres_url, "DROP TABLE commits")
    with pytest.raises(StoreError, match="another program's"):
        MemoryStore(postgres_url)


def test_a_store_of_a_newer_version_is_refused(postgres_url: str) -> None:
    MemoryStore(postgres_url).close()
    postgres.run(postgres_url, "UPDATE store SET steps = 99")
    with pytest.raises(StoreError, match="a newer hmt-memory wrote this store"):
        MemoryStore(postgres_url)


def test_rows_of_the_second_schema_are_read_as_they_were(postgres_url: str) -> None:
    with MemoryStore(postgres_url) as store:
        store.session("alice", MODEL).add([user("quinces " * 9), user("word " * 20)])
        before = memory_of(store.session("alice", MODEL))
    postgres.run(postgres_url, "ALTER TABLE segments DROP COLUMN bits")
    postgres.run(postgres_url, "UPDATE store SET steps = 2")
    with pytest.raises(StoreError, match="holds no store of this version"):
        MemoryStore(postgres_url, read_only=True)
    with MemoryStore(postgres_url, memory_bits=8) as store:
        session = store.session("alice", MODEL)
        np.testing.assert_array_equal(memory_of(session), before)
        session.add(user("what is added later is of 16 bits as well"))
        assert session.stats()["memory_bits"] == 16 and store.verify() == ([], [])
        assert store.session("bob", MODEL).stats()["memory_bits"] == 8
    assert postgres.run(postgres_url, "SELECT steps FROM store") == [(len(migrations.STEPS),)]


def test_looking_makes_nothing(postgres_url: str) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        MemoryStore(postgres_url, read_only=True)
    assert postgres.run(postgres_url, "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()") == [(0,)]


def test_a_server_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"postgresql://me@/db\?host=.* cannot be used: .*No such file"):
        MemoryStore(f"postgresql://me:secret@/db?host={tmp_path}")


def test_workers_that_open_a_new_store_at_once_make_one(postgres_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: MemoryStore(postgres_url), range(4)))
    assert len({store.database.cache for store in stores}) == 1
    for store in stores:
        store.close()


def test_a_server_that_forgets_what_it_acknowledged_is_a_problem(
    postgres_url: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.problems() == []
    real = PostgresTransaction.one
    monkeypatch.setattr(
        PostgresTransaction, "one", lambda self, query, *values: ("off",) if "fsync" in query else real(self, query, *values)
    )
    assert backend.problems() == ["database: fsync is off, so a crash of the server loses what was acknowledged"]


def test_tables_of_content_ask_to_be_cleaned_up_after_every_deletion(postgres_url: str, backend: Backend) -> None:
    tables = "oid = ANY(ARRAY[" + ", ".join(f"'{table}'::regclass" for table in CONTENT) + "])"
    toast = "oid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'payloads'::regclass)"
    rows = postgres.run(postgres_url, f"SELECT reloptions FROM pg_class WHERE {tables} OR {toast}")
    assert len(rows) == len(CONTENT) + 1
    for (options,) in rows:
        assert "autovacuum_vacuum_threshold=0" in options and "autovacuum_vacuum_scale_factor=0" in options
