"""What a store survives: kill -9, damaged files, a full disk, several processes and threads."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import crash_worker
import numpy as np
import pytest
from places import SUPPORT
from processes import journal_of, start
from stored import memory_of
from tiny import LONG, else_long

from hmt_memory import HMTError, HMTModel, MemoryStore
from hmt_memory.errors import SessionBusyError, StoreDamagedError, StoreError
from hmt_memory.store.rows import crc_of
from hmt_memory.store.sql import migrations
from hmt_memory.store.sqlite.transaction import APPLICATION_ID, SqliteTransaction

pytestmark = pytest.mark.disk
EMBEDDINGS = "SELECT data FROM segments JOIN payloads ON id = memory"


def wait_for(path: Path, entries: int) -> None:
    deadline = time.monotonic() + 60
    while len(journal_of(path)) < entries:
        assert time.monotonic() < deadline, "the other process does not start"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def worker_model() -> HMTModel:
    return crash_worker.MODEL


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path: Path, place: Path | str, worker_model: HMTModel) -> None:
    """One store, killed again and again: after each kill it holds what was acknowledged, and at most what was under way."""
    chance = random.Random(5)
    held: list[str | None] = []  # texts in order; None: an answer, whatever it says
    ids: list[int] = []
    for round in range(200 if LONG else 10):
        path = tmp_path / f"journal-{round}"
        process = start(crash_worker.talk, str(place), str(path), round)
        wait_for(path, 1)
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.join()
        attempt = follow(journal_of(path), held, ids)
        with MemoryStore(place) as store:
            found = store.session("talk").messages()
            accept(found, attempt, held, ids)
            assert store.verify().problems == []
    with MemoryStore(place) as store:
        session = store.session("talk", worker_model)
        memory = memory_of(session)
        session.export(tmp_path / "export")
        fresh = store.import_session(tmp_path / "export", name="fresh").rebuild(worker_model)
        np.testing.assert_allclose(memory, memory_of(fresh), atol=2e-3)


def follow(journal: list[list[Any]], held: list[str | None], ids: list[int]) -> tuple[str, Any] | None:
    """Apply what was acknowledged; what was announced last and not acknowledged."""
    attempt: tuple[str, Any] | None = None
    for kind, what, value in journal[1:]:
        if kind == "try":
            attempt = (what, value)
            continue
        assert attempt is not None
        if what == "forget":
            at = ids.index(value)
            del ids[at], held[at]
        else:
            held += [attempt[1], None][: len(value)]
            ids += value
        attempt = None
    return attempt


def accept(found: list[Any], attempt: tuple[str, Any] | None, held: list[str | None], ids: list[int]) -> None:
    """The store holds what was acknowledged, with or without the whole of what was under way."""
    present = [message.id for message in found]
    if attempt is not None and present != ids:
        kind, value = attempt
        if kind == "forget":
            at = ids.index(value)
            del ids[at], held[at]
        else:
            new = found[len(ids) :]
            assert len(new) == (2 if kind == "ask" else 1) and new[0].content == value
            held += [value, None][: len(new)]
            ids += [message.id for message in new]
    assert present == ids
    assert all(text is None or message.content == text for message, text in zip(found, held, strict=True))


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, worker_model: HMTModel) -> tuple[Path, list[Any]]:
    """A closed store, and everything it answers."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    with MemoryStore(folder, clock=lambda: 0.0) as store:
        session = store.session("talk", worker_model)
        for turn in range(12):
            session.add({"role": "user", "content": f"turn {turn}: " + "some words to remember " * (turn % 4)})
        session.fork("other").add({"role": "user", "content": "elsewhere"})
        store.corpus("book", worker_model).add_documents(["a text of several segments, " * 4, "and a short one"])
        session.attach("book")
        store.session("talk", worker_model).recall("words")
    return folder, everything(folder, worker_model)


def everything(folder: Path, model: HMTModel) -> list[Any]:
    store = MemoryStore(folder, clock=lambda: 0.0)
    try:
        found: list[Any] = [store.sessions(), store.corpora()]
        for name in ("talk", "other"):
            session = store.session(name, model)
            found.append([(message.id, message.to_dict()) for message in session.messages()])
            found.append(session.stats())
            found.append([(one.source, one.text, round(one.weight, 5)) for one in session.recall("words", 4)])
            question = {"role": "user", "content": "some words?"}
            reply = session.reply(question, min_new_tokens=40, max_new_tokens=40)  # abandoned after its first piece
            found.append([next(reply), [one.text for one in reply.recalled]])
        return found
    finally:
        for index in list(store.open_indexes._open.values()):
            for one in filter(None, index):
                one._saved = one.count  # nothing here is to be kept
        store.close()


def damage(path: Path, chance: random.Random) -> str:
    """Flip a bit, tear a page, or cut the file."""
    content = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "flip", "flip", "zero", "garbage", "truncate"])
    page = chance.randrange(max(1, len(content) // 4096)) * 4096
    if kind == "flip":
        at = chance.randrange(len(content))
        content[at] ^= 1 << chance.randrange(8)
        kind += f" {at}"
    elif kind == "zero":
        content[page : page + 4096] = bytes(len(content[page : page + 4096]))
    elif kind == "garbage":
        content[page : page + 512] = chance.randbytes(len(content[page : page + 512]))
    else:
        del content[chance.randrange(len(content)) :]
    path.write_bytes(content)
    return f"{kind} page {page}"


@pytest.mark.parametrize("seed", else_long(range(10), 0, 1, 2, 3))
def test_a_damaged_database_is_a_loud_error_never_a_wrong_answer(
    whole: tuple[Path, list[Any]], worker_model: HMTModel, tmp_path: Path, seed: int
) -> None:
    folder, answers = whole
    chance = random.Random(seed)
    for round in range(60 if LONG else 6):
        copy = tmp_path / str(round)
        shutil.copytree(folder, copy)
        what = damage(copy / "memory.db", chance)
        try:
            found = everything(copy, worker_model)
        except (StoreError, HMTError):
            continue
        assert found == answers, what


@pytest.mark.parametrize("what", ["text", "tokens", "memory", "document"])
def test_a_flipped_bit_in_what_was_said_or_read_is_noticed(
    whole: tuple[Path, list[Any]], worker_model: HMTModel, tmp_path: Path, what: str
) -> None:
    """SQLite itself does not notice: the row is well formed, it only says something else."""
    folder, _ = whole
    shutil.copytree(folder, tmp_path / "copy")
    with MemoryStore(tmp_path / "copy") as store, store.database.reading() as db:
        embedding = db.execute(f"{EMBEDDINGS} ORDER BY stream, seq DESC LIMIT 1").fetchone()[0]
    words = "turn 7: some words"
    parts = {
        "text": words.encode(),
        "tokens": np.array(worker_model.backbone.encode(words), "<u4").tobytes(),
        "memory": embedding,
        "document": b"and a short one",
    }
    path = tmp_path / "copy" / "memory.db"
    content = bytearray(path.read_bytes())
    at = content.index(parts[what])
    content[at + 5] ^= 1
    path.write_bytes(content)
    with MemoryStore(tmp_path / "copy") as store:
        assert store.verify().problems
    shutil.rmtree(tmp_path / "copy" / "indexes")
    with pytest.raises(StoreDamagedError):
        everything(tmp_path / "copy", worker_model)
        MemoryStore(tmp_path / "copy").corpus("book", worker_model).documents()


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_index_is_made_again(
    whole: tuple[Path, list[Any]], worker_model: HMTModel, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder, answers = whole
    chance = random.Random(seed)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    files = sorted((copy / "indexes").iterdir())
    assert files
    damage(chance.choice(files), chance)
    assert everything(copy, worker_model) == answers
    assert len([record for record in caplog.records if "made again" in record.message]) == 1


def test_a_missing_index_is_made_again_in_silence(
    whole: tuple[Path, list[Any]], worker_model: HMTModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, answers = whole
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "indexes")
    assert everything(tmp_path / "copy", worker_model) == answers
    assert not caplog.records


def test_an_index_of_other_rows_is_not_believed(
    whole: tuple[Path, list[Any]], worker_model: HMTModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, answers = whole
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first, second = sorted((copy / "indexes").glob("*.index"))[:2]
    shutil.copy(first, tmp_path / "swap")
    shutil.copy(second, first)
    shutil.copy(tmp_path / "swap", second)
    assert everything(copy, worker_model) == answers
    assert "the record says otherwise" in caplog.text


def test_verify_follows_the_digests(place: Path | str, worker_model: HMTModel) -> None:
    """Rows that are whole in themselves and not those that were written."""
    with MemoryStore(place) as store:
        session = store.session("talk", worker_model)
        session.add({"role": "user", "content": "word " * 30})
        assert store.verify() == store.verify("talk") == ([], [])
        with store.database.writing() as db:
            rows = [list(row[1:-2]) for row in db.execute("SELECT * FROM segments ORDER BY seq").fetchall()]
            changed = [*rows[2][:3], *rows[3][3:6], *rows[2][6:]]
            columns = "memory = ?, memory_size = ?, memory_check = ?, crc = ?"
            db.execute(f"UPDATE segments SET {columns} WHERE seq = 2", (*changed[3:6], crc_of(*changed)))
        assert "segment 2 does not follow" in store.verify().problems[0]
        store.session("talk").rebuild(worker_model)
        assert store.verify() == ([], [])


def test_another_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(b"this is not a database, it only has its name" * 100)
    with pytest.raises(StoreDamagedError, match="not a database"):
        MemoryStore(tmp_path)
    with pytest.raises(StoreError, match="cannot be a store"):
        MemoryStore(tmp_path / "memory.db")


def test_a_newer_store_and_another_programs_are_left_alone(tmp_path: Path) -> None:
    with MemoryStore(tmp_path / "newer") as store, store.database.writing() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"schema 99, this version knows 3\). Upgrade"):
        MemoryStore(tmp_path / "newer")
    (tmp_path / "foreign").mkdir()
    other = sqlite3.connect(tmp_path / "foreign" / "memory.db")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(StoreError, match="another program's"):
        MemoryStore(tmp_path / "foreign")


def test_stores_of_every_released_schema_open(tmp_path: Path, worker_model: HMTModel) -> None:
    """From blank, and from what each release wrote: the first step alone, and so on."""
    for version in range(len(migrations.STEPS) + 1):
        folder = tmp_path / str(version)
        folder.mkdir()
        db = sqlite3.connect(folder / "memory.db", isolation_level=None)
        for step in migrations.STEPS[:version]:
            step(SqliteTransaction(db))
        if version:
            SqliteTransaction(db).set_version(version)
        db.close()
        with MemoryStore(folder) as store:
            session = store.session("talk", worker_model)
            assert session.add({"role": "user", "content": "hello"}) == [1] and store.verify() == ([], [])
            with store.database.reading() as db:
                assert db.execute("PRAGMA user_version").fetchone() == (len(migrations.STEPS),)


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 5_000, 60_000])
def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path: Path, worker_model: HMTModel, room: int) -> None:
    folder, path = tmp_path / "store", tmp_path / "journal"
    with MemoryStore(folder) as store:
        store.session("talk", worker_model).add({"role": "user", "content": "first"})
    process = start(crash_worker.fill, str(folder), str(path), room)
    process.join(60)
    assert process.exitcode == 0
    journal = journal_of(path)
    acknowledged = [[ids[0], text] for kind, ids, text in journal if kind == "done"]
    assert journal[-2][:2] == ["full", "StoreFullError"] and "Free some space" in journal[-2][2]
    assert journal[-1] == ["left", [[1, "first"], *acknowledged], []]
    with MemoryStore(folder) as store:
        session = store.session("talk", worker_model)
        assert [[one.id, one.content] for one in session.messages()] == journal[-1][1]
        session.add({"role": "user", "content": "there is room again"})


# --- several processes and threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ["session-1", "store"])
def test_a_second_writer_waits_briefly_and_readers_not_at_all(
    tmp_path: Path, place: Path | str, worker_model: HMTModel, lock: str
) -> None:
    path = tmp_path / "journal"
    with MemoryStore(place, timeout=0.2) as store:
        session = store.session("talk", worker_model)
        session.add({"role": "user", "content": "first"})
        process = start(crash_worker.hold, str(place), lock, 60, str(path))
        wait_for(path, 1)
        with pytest.raises(SessionBusyError, match=r"Nothing was stored|Try again"):
            session.add({"role": "user", "content": "second"})
        assert [message.content for message in session.messages()] == ["first"]
        assert session.stats()["messages"] == 1
        process.kill()
        process.join()
        session.add({"role": "user", "content": "third"})
        assert [message.content for message in session.messages()] == ["first", "third"]


@pytest.mark.slow
def test_two_writers_and_two_readers_of_one_session(tmp_path: Path, place: Path | str, worker_model: HMTModel) -> None:
    MemoryStore(place).session("shared", worker_model)
    paths = [tmp_path / name for name in ("one", "two", "three", "four")]
    writers = [start(crash_worker.write, str(place), path.name, 25, str(path)) for path in paths[:2]]
    readers = [start(crash_worker.look, str(place), 2.0, str(path)) for path in paths[2:]]
    for process in writers + readers:
        process.join(60)
        assert process.exitcode == 0
    assert [entry[0] for path in paths[2:] for entry in journal_of(path)] == ["looked", "looked"]
    with MemoryStore(place) as store:
        session = store.session("shared", worker_model)
        said = [message.content for message in session.messages()]
        for path in paths[:2]:
            assert [text for text in said if text.startswith(path.name)] == [
                f"{path.name} {turn} and some more words" for turn in range(25)
            ]
        assert store.verify() == ([], [])
        session.export(tmp_path / "export")
        fresh = store.import_session(tmp_path / "export", name="fresh").rebuild(worker_model)
        np.testing.assert_allclose(memory_of(session), memory_of(fresh), atol=2e-3)


def test_a_process_may_fork_with_a_store_open(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    process = start(crash_worker.fork_and_write, str(tmp_path / "store"), str(path))
    process.join(60)
    assert process.exitcode == 0
    (_, _, reused), (_, said, status, problems) = sorted(journal_of(path))
    assert (status, problems) == (0, []) and not reused, "SQLite forbids a connection of another process"
    for who in ("parent", "child"):
        assert [text for text in said if text.startswith(who)] == [f"{who} {turn}" for turn in range(5)]


@pytest.mark.slow
def test_sixteen_threads_over_fifty_sessions_keep_them_apart(place: Path | str, worker_model: HMTModel) -> None:
    errors: list[BaseException] = []
    with MemoryStore(place, timeout=60) as store:

        def talk(thread: int) -> None:
            chance = random.Random(thread)
            try:
                for turn in range(8):
                    name = f"session {chance.randrange(50)}"
                    store.session(name, worker_model).add({"role": "user", "content": f"{name}: {thread}.{turn} {'x' * 20}"})
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=talk, args=(thread,)) for thread in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        said = {name: [message.content for message in store.session(name).messages()] for name in store.sessions()}
        assert sum(map(len, said.values())) == 16 * 8
        assert all(text.startswith(f"{name}:") for name, texts in said.items() for text in texts)
        assert store.verify() == ([], [])
        name = max(said, key=lambda name: len(said[name]))
        alone = store.session("alone", worker_model)
        for text in said[name]:
            alone.add({"role": "user", "content": text})
        np.testing.assert_allclose(memory_of(store.session(name, worker_model)), memory_of(alone), atol=2e-3)


def test_threads_that_answer_in_one_session_lose_no_turn(place: Path | str, worker_model: HMTModel) -> None:
    with MemoryStore(place, timeout=60) as store:
        session = store.session("talk", worker_model)
        session.add({"role": "user", "content": "hello"})
        decoding = {"max_new_tokens": 8}
        threads = [
            threading.Thread(target=lambda n=n: session.reply({"role": "user", "content": f"q{n}"}, **decoding).finish())
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        messages = session.messages()
        assert sorted(message.content for message in messages[1::2]) == [f"q{n}" for n in range(8)]
        assert all(message.role == "assistant" for message in messages[2::2])
        assert store.verify() == ([], [])


def test_every_connection_syncs_what_it_commits(tmp_path: Path, worker_model: HMTModel) -> None:
    """A power cut is not to be had in a test; what SQLite promises for these settings is."""
    with MemoryStore(tmp_path) as store:
        for transaction in (store.database.reading, store.database.writing):
            with transaction() as db:
                assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
                assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
                assert db.execute("PRAGMA secure_delete").fetchone() == (1,)


def test_what_the_first_schema_held_is_all_there(tmp_path: Path, worker_model: HMTModel) -> None:
    """A store that version 0.1.0 wrote: two sessions that share their past, a system prompt, a forgotten message, a corpus."""
    folder = store_of_schema_1(tmp_path)
    with MemoryStore(folder) as store:
        assert store.verify().ok and store.sessions() == ["alice", "böb"] and store.corpora() == ["papers"]
        said = {name: [message.content for message in store.session(name).messages()] for name in store.sessions()}
        shared = ["Be kind.", "The key lies under the third flower pot.", "Zoë likes quinces 🍐"]
        assert said == {"alice": shared, "böb": [*shared, "said to the fork alone"]}
        session = store.session("alice")
        assert session.stats()["segments"] == 4 and session.stats()["corpora"] == ["papers"] and session.system() == "Be kind."
        assert [document.name for document in store.corpus("papers").documents()] == ["contract.md", "note"]
        assert session.forget([2])[1] == ("böb",) and store.session("böb").forget([2])[1] == ()
        store.delete_corpus("papers")
        ids = session.rebuild(worker_model).add({"role": "user", "content": "and on it goes"})
        assert ids == [5], "no id is given twice"
        assert store.verify() == ([], [])
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"flower pot" not in content and b"contract.md" not in content and b"quinces" in content


def store_of_schema_1(tmp_path: Path) -> Path:
    """A folder with a database as version 0.1.0 left it."""
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    db = sqlite3.connect(folder / "memory.db", isolation_level=None)
    db.executescript((SUPPORT / "data" / "store-v1.sql").read_text(encoding="utf-8"))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")
    db.close()
    return folder


def test_a_damaged_row_of_the_first_schema_is_not_moved(tmp_path: Path) -> None:
    folder = store_of_schema_1(tmp_path)
    db = sqlite3.connect(folder / "memory.db", isolation_level=None)
    db.execute("UPDATE messages SET body = '{}' WHERE id = 2")
    db.close()
    with pytest.raises(StoreDamagedError, match="message 2 is damaged"):
        MemoryStore(folder)
    db = sqlite3.connect(folder / "memory.db")
    assert db.execute("PRAGMA user_version").fetchone() == (1,), "it is as it was"
    db.close()
