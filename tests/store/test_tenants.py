"""Tenants of one schema are kept apart by the server: none sees, changes or is hindered by rows of another."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_worker
import postgres
import psycopg
import pytest
from store_conformance import RecordStoreConformance
from stored import user
from tenants import Apart

from hmt_memory import MemoryStore, Tiers
from hmt_memory.errors import InputError, SessionNotFoundError, StoreError
from hmt_memory.store.backend import Backend, Capability
from hmt_memory.store.open import keep_tenants_apart, open_backend

MODEL = crash_worker.MODEL


@pytest.fixture(scope="module")
def apart(postgres_server: Any) -> Iterator[Apart]:
    """A store that all tests of this file share, each with tenants of its own."""
    made = Apart(postgres_server, postgres.new_store(postgres_server))
    keep_tenants_apart(made.url, [])
    yield made
    made.drop()


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "caches"))


class TestTenant(RecordStoreConformance):
    """A tenant has a whole store, beside those of the tests before."""

    @pytest.fixture
    def backend(self, apart: Apart) -> Iterator[Backend]:
        self.url = apart.of(apart.tenant())
        opened = open_backend(self.url, timeout=5)
        yield opened
        opened.close()

    def place(self, backend: Backend) -> Path | str:
        return self.url

    def damage(self, backend: Backend, statement: str) -> None:
        postgres.run(self.url, statement)


# --- what a tenant has ------------------------------------------------------------------------------------------------


@pytest.fixture
def ann(apart: Apart) -> str:
    """The address of a tenant."""
    return apart.of(apart.tenant())


@pytest.fixture
def bob(apart: Apart) -> str:
    return apart.of(apart.tenant())


def texts(store: MemoryStore, session: str) -> list[str]:
    return [message.content for message in store.session(session).messages()]


def test_sessions_of_one_name_are_two(ann: str, bob: str, tmp_path: Path) -> None:
    with MemoryStore(ann) as hers, MemoryStore(bob) as his:
        for store, word in ((hers, "quinces "), (his, "medlars ")):
            session = store.session("alice", MODEL)
            ids = session.add([user(word * 9), user(f"forget {word}"), user(word * 20)])
            store.corpus("papers", MODEL).add_documents([word * 30])
            session.attach("papers")
            session.fork("what if").add(user(f"if {word}"))
            session.forget(ids[1:2])
            session.export(tmp_path / f"{word.strip()}.hmt")
            store.import_session(tmp_path / f"{word.strip()}.hmt", name="again", model=MODEL)
            session.set_retention(messages=1)
            store.rename("again", "twice")
        for store, word, other in ((hers, "quinces ", "medlars"), (his, "medlars ", "quinces")):
            assert store.sessions() == ["alice", "twice", "what if"] and store.corpora() == ["papers"]
            assert texts(store, "alice") == [word * 20] and texts(store, "twice") == [word * 9, word * 20]
            assert texts(store, "what if") == [word * 9, f"forget {word}", word * 20, f"if {word}"]
            assert store.session("alice", MODEL).recall(word) and not store.search(other) and not store.search_corpora(other)
            assert store.verify() == ([], [])
        hers.delete("alice")
        hers.delete_corpus("papers")
        assert his.sessions() == ["alice", "twice", "what if"] and his.corpora() == ["papers"]
        assert his.verify() == ([], []) == hers.verify()


def test_a_session_of_another_tenant_looks_as_if_it_did_not_exist(ann: str, bob: str) -> None:
    with MemoryStore(ann) as hers, MemoryStore(bob) as his:
        session = hers.session("alice", MODEL)
        session.add(user("mine"))
        with pytest.raises(SessionNotFoundError) as there:
            his.session("alice")
        with pytest.raises(SessionNotFoundError) as nowhere:
            his.session("nobody")
        assert str(there.value) == str(nowhere.value).replace("nobody", "alice") and "none yet" in str(there.value)
        assert his.named("session", session.number) is None and not his.has("session", "alice")
        his.session("carol", MODEL)
        his.rename("carol", "alice")
        assert texts(his, "alice") == [] and texts(hers, "alice") == ["mine"]
    with MemoryStore(ann, read_only=True) as hers:
        assert texts(hers, "alice") == ["mine"]


def test_tenants_do_not_wait_for_one_another(ann: str, bob: str) -> None:
    with MemoryStore(ann) as hers, MemoryStore(bob, timeout=0.2) as his:
        with hers.database.exclusive(), hers.database.lock("mine"), his.database.lock("mine"):
            his.session("alice", MODEL).add(user("and mine"))
        with hers.database.writing() as db:
            db.set_fact("one", "1")
            with his.database.writing() as others:
                others.set_fact("one", "2")
        with hers.database.reading() as db, his.database.reading() as others:
            assert (db.fact("one"), others.fact("one")) == ("1", "2")


def test_a_tenants_index_files_are_its_own(ann: str, bob: str, tmp_path: Path) -> None:
    with MemoryStore(ann) as hers:
        hers.session("alice", MODEL).add([user("quinces " * 9), user("word " * 20)])
        assert hers.session("alice", MODEL).recall("word")
        folder = hers.database.cache
    kept = {path.name for path in folder.iterdir()}
    with MemoryStore(bob) as his:
        his.session("carol", MODEL).add(user("something"))
        his.delete("carol")  # so that files are compared with what is there
        assert his.database.cache != folder
    MemoryStore(bob).close()
    assert any(name.endswith(".index") for name in kept) and {path.name for path in folder.iterdir()} == kept


def test_a_copy_in_a_folder_holds_what_is_the_tenants(ann: str, bob: str, tmp_path: Path) -> None:
    with MemoryStore(ann) as hers, MemoryStore(bob) as his:
        hers.session("alice", MODEL).add(user("quinces"))
        his.session("bob", MODEL).add(user("medlars"))
        his.backup(tmp_path / "copy")
    with MemoryStore(tmp_path / "copy") as copy:
        assert copy.sessions() == ["bob"] and copy.verify() == ([], [])
        with pytest.raises(InputError, match="Export and import sessions"):
            copy.backup(ann)
    assert b"quinces" not in b"".join(path.read_bytes() for path in (tmp_path / "copy").iterdir() if path.is_file())


def test_only_the_owner_of_the_tables_gives_their_room_back(apart: Apart, ann: str) -> None:
    with MemoryStore(ann) as store:
        assert Capability.SEPARATES_TENANTS in store.capabilities and Capability.GIVES_ROOM_BACK not in store.capabilities
        with pytest.raises(StoreError, match="only the owner"):
            store.compact()
        with store.database.reading() as db:
            assert db.fact("rewriting") is None


# --- what the server refuses, to any statement ------------------------------------------------------------------------

ROWS = ("payloads", "facts", "models", "streams", "collections", "messages", "tokens", "segments", "documents", "commits")


@pytest.fixture
def told(ann: str) -> str:
    """A tenant that has rows of every kind."""
    with MemoryStore(ann) as store:
        session = store.session("alice", MODEL)
        session.add([user("quinces " * 9), user("word " * 20)])
        session.set_retention(messages=5)
        store.corpus("papers", MODEL).add_documents(["word " * 30])
        with store.database.writing() as db:
            db.set_fact("one", "1")
    return ann


def test_no_statement_shows_or_changes_another_tenants_rows(told: str, bob: str) -> None:
    tables = {
        name for (name,) in postgres.run(told, "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()")
    }
    assert set(ROWS) <= tables
    for table in tables - {"store"}:
        before = postgres.run(told, f"SELECT count(*) FROM {table}")
        assert table not in ROWS or before[0][0] > 0
        assert postgres.run(bob, f"SELECT count(*) FROM {table}") == [(0,)]
        changed = f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone"
        assert postgres.run(bob, changed) == [(0,)]
        assert postgres.run(told, f"SELECT count(*) FROM {table}") == before


FORBIDDEN = (
    "INSERT INTO facts (name, value, tenant) VALUES ('one', '2', {tenant})",
    "UPDATE facts SET tenant = {tenant}",
    "UPDATE store SET steps = 99",
    "TRUNCATE facts",
    "SELECT setval(pg_get_serial_sequence('streams', 'id'), 1)",
    "ALTER TABLE facts DISABLE ROW LEVEL SECURITY",
    "DROP POLICY tenant ON facts",
    "CREATE TABLE mine (id BIGINT)",
    "SET ROLE {tenant}",
)


def test_a_tenant_may_not_write_for_others_nor_change_what_all_share(apart: Apart, told: str, bob: str) -> None:
    with MemoryStore(bob) as store, store.database.writing() as db:
        db.set_fact("two", "2")
    tenant = postgres.run(told, "SELECT quote_literal(current_user)")[0][0]
    role = postgres.run(bob, "SELECT current_user::text")[0][0]
    for kind in ("TABLES", "SEQUENCES"):
        postgres.run(apart.url, f"GRANT ALL ON ALL {kind} IN SCHEMA {apart.schema} TO {role}")
    keep_tenants_apart(apart.url, [role])
    for statement in FORBIDDEN:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            postgres.run(bob, statement.format(tenant=tenant))


MORE = (
    "CREATE ON SCHEMA {schema}",
    "ALL ON ALL SEQUENCES IN SCHEMA {schema}",
    "TRUNCATE ON facts",
    "REFERENCES ON payloads",
    "TRIGGER ON messages",
    "UPDATE ON store",
)


@pytest.mark.parametrize("right", MORE)
def test_a_role_that_may_do_more_than_read_and_write_rows_is_refused(apart: Apart, bob: str, right: str) -> None:
    role, group, named = (
        postgres.run(bob, "SELECT current_user::text")[0][0],
        apart.role("NOLOGIN"),
        right.format(schema=apart.schema),
    )
    postgres.run(apart.url, f"GRANT {named} TO PUBLIC")
    with pytest.raises(StoreError, match=f"{role}' may do more"):
        MemoryStore(bob)
    keep_tenants_apart(apart.url, [])
    MemoryStore(bob, read_only=True).close()
    postgres.run(apart.url, f"GRANT {named} TO {group}")
    postgres.run(apart.url, f"GRANT {group} TO {role}")
    with pytest.raises(StoreError, match="may do more"):
        MemoryStore(bob)


def test_a_tenant_that_owns_something_in_the_schema_is_no_owner_of_the_store(apart: Apart, bob: str) -> None:
    role = postgres.run(bob, "SELECT current_user::text")[0][0]
    postgres.run(apart.url, f"GRANT TRUNCATE ON facts TO {role}")
    postgres.run(apart.url, f"CREATE TABLE kept (tenant TEXT); ALTER TABLE kept OWNER TO {role}")
    try:
        keep_tenants_apart(apart.url, [role])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            postgres.run(bob, "TRUNCATE facts")
    finally:
        postgres.run(apart.url, "DROP TABLE kept")


def test_nothing_is_refused_or_referred_to_because_another_tenant_has_it(told: str, bob: str) -> None:
    """Neither a key that is taken nor a row that is pointed at tells what others have."""
    ((stream, message),) = postgres.run(told, "SELECT stream, seq FROM messages LIMIT 1")
    ((payload,),) = postgres.run(told, "SELECT max(id) FROM payloads")
    ((session, key),) = postgres.run(told, "SELECT id, key FROM collections WHERE kind = 'session'")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        postgres.run(bob, f"INSERT INTO tokens VALUES ({stream}, 0, 0, 0, 0, 0)")
    postgres.run(bob, f"INSERT INTO streams VALUES ({stream}, NULL, 0, 0, 0, 0, 0, 0)")
    postgres.run(bob, f"INSERT INTO messages SELECT {stream}, {message}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0")
    postgres.run(bob, f"INSERT INTO payloads VALUES ({payload}, 'mine')")
    postgres.run(
        bob, f"INSERT INTO shares VALUES ({payload}, 1) ON CONFLICT ON CONSTRAINT shares_pkey DO UPDATE SET others = 2"
    )
    columns = (
        "id, kind, key, name, name_size, name_check, stream, next_id, revision, epoch, created_at, updated_at, settings, crc"
    )
    values = f"{session}, 'session', '\\x{key.hex()}', {payload}, 0, 0, {stream}, 0, 0, 0, 0, 0, '', 0"
    postgres.run(bob, f"INSERT INTO collections ({columns}) VALUES ({values})")
    with MemoryStore(told) as store:
        assert store.verify() == ([], []) and len(texts(store, "alice")) == 2


def test_rows_are_found_by_tenant_and_key(told: str) -> None:
    """Otherwise whatever a tenant looks for would take longer the more rows others have."""
    named = "SELECT string_agg(indexdef, ' ') FROM pg_indexes WHERE tablename = 'collections'"
    with MemoryStore(told) as store, store.database.begun("BEGIN; SET LOCAL enable_seqscan = off") as db:  # type: ignore[attr-defined]
        ((indexes,),) = db.execute(named)
        for key, columns in (("kind = 'session' AND key = 'x'", "kind, key"), ("id = 3", "id")):
            assert f"(tenant, {columns})" in indexes
            # which index is as cheap as any other among so few rows, but it is asked for the tenant's
            plan = " ".join(line for (line,) in db.execute(f"EXPLAIN SELECT 1 FROM collections WHERE {key}"))
            assert re.search(r"Index Cond: \(+tenant = ", plan), plan


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(apart: Apart) -> Iterator[MemoryStore]:
    """The store of one of two tenants, over a role that may be either; all of it over one connection."""
    worker = apart.role()
    first, second = apart.tenant("NOLOGIN"), apart.tenant("NOLOGIN")
    postgres.run(apart.url, f"GRANT {first}, {second} TO {worker}")
    with MemoryStore(apart.of(worker, second)) as store:
        store.session("bob", MODEL)
    with MemoryStore(apart.of(worker, first)) as store:
        store.session("alice", MODEL)
        store.other = second  # type: ignore[attr-defined]
        yield store


def who(store: MemoryStore) -> tuple[str, int]:
    with store.database.reading() as db:
        return db.one("SELECT current_user::text, pg_backend_pid()")  # type: ignore[attr-defined,no-any-return]


def no_end(store: MemoryStore) -> None:
    with store.database.begun(f"SET ROLE {store.other}"):  # type: ignore[attr-defined]
        pass


def rolled_back(store: MemoryStore) -> None:
    with pytest.raises(ZeroDivisionError), store.database.writing() as db:
        db.execute(f"SET ROLE {store.other}")  # type: ignore[attr-defined]
        raise ZeroDivisionError


def refused(store: MemoryStore) -> None:
    with store.database.begun(f"SET ROLE {store.other}") as connection, pytest.raises(psycopg.Error):  # type: ignore[attr-defined]
        connection.execute("SELECT 1 / 0")


def cancelled(store: MemoryStore) -> None:
    with store.database.begun(f"BEGIN; SET ROLE {store.other}") as connection:  # type: ignore[attr-defined]
        timer = threading.Timer(0.1, connection.cancel)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(10)")


@pytest.mark.parametrize("use", [no_end, rolled_back, refused, cancelled])
def test_a_pooled_connection_keeps_nothing_of_its_last_tenant(pool: MemoryStore, use: Callable[[MemoryStore], None]) -> None:
    before = who(pool)
    use(pool)
    assert who(pool) == before, "the same connection, and the same tenant"
    assert pool.sessions() == ["alice"]
    with pool.database.lock("mine"):
        pool.session("carol", MODEL)
    assert pool.sessions() == ["alice", "carol"] and pool.verify() == ([], [])


# --- who may open it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["SUPERUSER", "BYPASSRLS"])
def test_a_role_that_would_see_all_rows_is_refused(apart: Apart, options: str) -> None:
    above, tenant = apart.tenant(f"LOGIN {options}"), apart.tenant()
    below = apart.tenant()
    postgres.run(apart.url, f"GRANT {tenant} TO {above}")
    postgres.run(apart.url, f"GRANT {above} TO {below}")
    for url in (apart.of(above), apart.of(above, tenant), apart.of(below)):
        with pytest.raises(StoreError, match=f"'{above}', a superuser or one with BYPASSRLS"):
            MemoryStore(url)
    with pytest.raises(StoreError, match="BYPASSRLS"):
        MemoryStore(apart.of(below), read_only=True)


def test_a_role_that_is_not_the_tenant_is_refused(apart: Apart, ann: str) -> None:
    stranger, tenant = apart.tenant(), apart.tenant()
    with pytest.raises(StoreError, match="permission denied to set role"):
        MemoryStore(apart.of(stranger, tenant))
    with pytest.raises(StoreError, match="not the tenant 'none'"):
        MemoryStore(apart.of(stranger, "none"))
    with pytest.raises(InputError, match="cannot be a tenant"):
        MemoryStore(apart.of(stranger, ""))
    with pytest.raises(StoreError, match="may not use the schema"):
        MemoryStore(apart.of(apart.role()))


@pytest.fixture
def owned(apart: Apart) -> Iterator[tuple[str, Apart]]:
    """A store that keeps no tenants apart, whose owner is no superuser: the owner, and the store."""
    theirs = Apart(apart._server, postgres.new_store(apart._server))
    owner = theirs.role()
    postgres.run(theirs.url, f"CREATE SCHEMA {theirs.schema} AUTHORIZATION {owner}")
    yield owner, theirs
    theirs.drop()


def test_an_owner_whom_the_rules_do_not_hold_is_refused(owned: tuple[str, Apart]) -> None:
    url = owned[1].of(owned[0])
    keep_tenants_apart(url, [])
    with MemoryStore(url) as store:
        assert store.sessions() == [] and store.compact() >= 0
    for change in ("NO FORCE", "DISABLE"):
        postgres.run(url, f"ALTER TABLE messages {change} ROW LEVEL SECURITY")
        with pytest.raises(StoreError, match="in messages: it was disabled"):
            MemoryStore(url)
        keep_tenants_apart(url, [])
        MemoryStore(url).close()


def test_an_existing_store_becomes_that_of_a_tenant(owned: tuple[str, Apart], tmp_path: Path) -> None:
    (owner, roles), url = owned, owned[1].of(owned[0])
    ann, bob = roles.role(), roles.role()
    with MemoryStore(url) as store:
        store.session("alice", MODEL).add([user("quinces " * 9), user("word " * 20)])
        assert store.session("alice", MODEL).recall("word")
        assert Capability.SEPARATES_TENANTS not in store.capabilities
        before = store.database.cache
    with pytest.raises(StoreError, match="does not keep tenants apart"):
        MemoryStore(roles.of(owner, owner))
    with pytest.raises(InputError, match="--existing ROLE"):
        keep_tenants_apart(url, [ann, bob])
    with pytest.raises(InputError, match="has no role 'nobody"):
        keep_tenants_apart(url, ["nobody at all"], existing=ann)
    keep_tenants_apart(url, [bob], existing=ann)
    keep_tenants_apart(url, [bob])
    with pytest.raises(InputError, match="belong to tenants already"):
        keep_tenants_apart(url, [bob], existing=bob)
    with MemoryStore(roles.of(ann)) as hers, MemoryStore(roles.of(bob)) as his, MemoryStore(url) as owners:
        assert len(texts(hers, "alice")) == 2 and his.sessions() == [] == owners.sessions()
        hers.session("alice", MODEL).add(user("more"))
        hers.session("alice").fork("what if")
        his.session("alice", MODEL).add(user("other"))
        assert hers.verify() == ([], []) == his.verify()
        assert not before.exists(), "index files of the time before"


def test_only_the_owner_brings_the_tables_of_an_earlier_version_up_to_date(owned: tuple[str, Apart]) -> None:
    (owner, roles), url = owned, owned[1].of(owned[0])
    with MemoryStore(url) as store:
        store.session("alice", MODEL).add([user("quinces " * 9), user("word " * 20)])
    ann = roles.role()
    keep_tenants_apart(url, [], existing=ann)
    postgres.run(url, "ALTER TABLE segments DROP COLUMN bits")
    postgres.run(url, "UPDATE store SET steps = 2")
    for _ in range(2):
        with pytest.raises(
            StoreError, match=f"earlier version, and '{ann}' does not own its tables. Open it once as '{owner}'"
        ):
            MemoryStore(roles.of(ann))
    keep_tenants_apart(url, [])
    with MemoryStore(roles.of(ann)) as store:
        assert len(texts(store, "alice")) == 2 and store.verify() == ([], [])
        store.session("alice", MODEL).add(user("and more " * 9))
        assert store.verify() == ([], [])


def test_files_in_a_chosen_folder_of_the_time_before_tenants_are_deleted(owned: tuple[str, Apart], tmp_path: Path) -> None:
    (owner, roles), tiers = owned, Tiers(warm_folder=str(tmp_path / "warm"))
    with MemoryStore(roles.of(owner), tiers=tiers) as store:
        store.session("alice", MODEL).add([user("quinces " * 9), user("word " * 20)])
        assert store.session("alice", MODEL).recall("word")
    assert list((tmp_path / "warm").rglob("*.index"))
    ann = roles.role()
    keep_tenants_apart(roles.of(owner), [], existing=ann)
    MemoryStore(roles.of(ann), tiers=tiers, read_only=True).close()
    assert list((tmp_path / "warm").rglob("*.index")), "who only looks deletes nothing"
    MemoryStore(roles.of(ann), tiers=tiers).close()
    assert not list((tmp_path / "warm").rglob("*.index"))


def test_a_folder_has_no_tenants(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SQLite has no tenants"):
        keep_tenants_apart(tmp_path, ["acme"])
    with MemoryStore(tmp_path) as store:
        assert Capability.SEPARATES_TENANTS not in store.capabilities
