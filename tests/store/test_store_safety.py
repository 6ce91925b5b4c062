"""What a store guards against: other users, files that are replaced, false alarms, wrong clocks, memory without bound."""

from __future__ import annotations

import os
import random
import stat
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import crash_worker
import pytest
from processes import journal_of, start
from stored import FAST, user
from tiny import LONG

from hmt_memory import MemoryStore, Tiers, ViewConfig
from hmt_memory.errors import InputError, SessionExistsError, StoreError
from hmt_memory.retrieval import ranking
from hmt_memory.sessions import retention
from hmt_memory.store.index.words import WordIndex

MODEL = crash_worker.MODEL
DAY = 86_400.0
ROUNDS = 25 if LONG else 8  # of recalling beside a writer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store", timeout=5) as opened:
        yield opened


# --- one view of the rows ---------------------------------------------------------------------------------------------


def test_a_corpus_that_changes_while_it_is_recalled_from_is_no_damage(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between preselection and citing another process replaces every document: what is cited is what was preselected."""
    corpus = store.corpus("papers", MODEL)
    corpus.add_documents([(f"paper {n}", f"the old text of paper {n}. " * 6) for n in range(3)])
    other = MemoryStore(store.folder)
    real = ranking.choose

    def choose(*arguments: Any) -> Any:
        chosen = real(*arguments)
        documents = [(f"paper {n}", f"another text of paper {n}. " * 6) for n in range(3)]
        other.corpus("papers", MODEL).add_documents(documents, replace_named=True)
        return chosen

    monkeypatch.setattr(other.database, "empty_log", lambda: None)  # which would wait for the recall, here in one thread
    monkeypatch.setattr(ranking, "choose", choose)
    session = store.session("alice", MODEL, view=ViewConfig(recent_tokens=20, note_tokens=160, pinned_tokens=40))
    session.attach("papers")
    found = [*corpus.recall("text of paper", 9), *session.recall("text of paper", 9)]
    assert len(found) > 9 and not [one for one in found if not one.text]
    assert any("old" in one.text for one in found[:9])
    assert session.reply(user("text of paper?"), **FAST).finish().recalled
    assert store.verify().ok
    other.close()


@pytest.mark.slow
def test_recall_beside_replacements_without_pause(store: MemoryStore) -> None:
    """Threads of one store and another process's store: no false damage, no half document."""
    corpus, errors, stop = store.corpus("papers", MODEL), [], threading.Event()
    corpus.add_documents([("kept", "kept words " * 20), ("moving", "moving words 0 " * 20)])

    def replace() -> None:
        for turn in range(1, 10_000):
            if stop.is_set():
                return
            corpus.add_documents([("moving", f"moving words {turn} " * 20)], replace_named=True)

    def recall() -> None:
        try:
            for _ in range(ROUNDS):
                found = corpus.recall("words", 50)
                moving = [one for one in found if one.source == "papers/moving"]
                assert any(one.source == "papers/kept" for one in found)
                assert len({one.document for one in moving}) <= 1, "one document or the other"
                corpus.ask("words?", max_new_tokens=2).finish()
        except BaseException as error:
            errors.append(error)

    writer, readers = threading.Thread(target=replace), [threading.Thread(target=recall) for _ in range(2)]
    for thread in (writer, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    writer.join()
    assert errors == [] and store.verify().ok


def test_replacing_one_document_of_many_reads_only_that_one_again(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = store.corpus("papers", MODEL)
    corpus.add_documents([(f"paper {n}", f"text of paper {n} " * 4) for n in range(40)])
    expected = {one.id for one in corpus.recall("text", 999)}
    taken: list[int] = []
    real = WordIndex._extend

    def extend(self: WordIndex, db: Any, shelf: Any, start: int, stop: int) -> None:
        taken.append(stop - start)
        real(self, db, shelf, start, stop)

    monkeypatch.setattr(WordIndex, "_extend", extend)
    corpus.add_documents([("paper 7", "quite another text")], replace_named=True)
    found = corpus.recall("another", 999)
    assert sum(taken) <= 3 < len(found) and {one.id for one in found} != expected
    with MemoryStore(store.folder) as fresh:
        again = fresh.corpus("papers", MODEL).recall("another", 999)
    assert [(one.id, one.text, round(one.weight, 6)) for one in found] == [
        (one.id, one.text, round(one.weight, 6)) for one in again
    ]


@pytest.mark.parametrize("index", ["SQfp16", "torch", "Flat"])
def test_an_index_that_let_documents_go_finds_what_a_fresh_one_finds(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if index == "torch":
        monkeypatch.setitem(sys.modules, "faiss", None)
    chance, ids = random.Random(1), []
    with MemoryStore(tmp_path / "store", index="SQfp16" if index == "torch" else index) as store:
        corpus = store.corpus("papers", MODEL)
        for turn in range(12):
            ids += corpus.add_documents([(None, f"text {turn}.{n} " * chance.randrange(1, 9)) for n in range(3)])
            corpus.remove([ids.pop(chance.randrange(len(ids)))])
            found = [(one.id, round(one.weight, 5)) for one in corpus.recall("text", 99)]
        with MemoryStore(store.folder) as fresh:
            assert found == [(one.id, round(one.weight, 5)) for one in fresh.corpus("papers", MODEL).recall("text", 99)]


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="permissions of other systems")
@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_nobody_else_can_read_a_store(tmp_path: Path, umask: int, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(umask)
    try:
        with MemoryStore(tmp_path / "store") as store:
            session = store.session("alice", MODEL)
            session.add(user("word " * 40))
            session.recall("word")
            session.export(tmp_path / "export")
            store.open_indexes.save(session._id, store.open_indexes._open[session._id], always=True)
            modes = {
                path: stat.S_IMODE(path.stat().st_mode)
                for path in (store.folder, *store.folder.rglob("*"), tmp_path / "export")
            }
    finally:
        os.umask(before)
    assert {path for path, mode in modes.items() if mode & 0o077} == set() and len(modes) > 7
    assert not caplog.records


@pytest.mark.skipif(os.name != "posix", reason="permissions of other systems")
def test_an_open_folder_is_warned_of_and_its_files_are_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MemoryStore(tmp_path / "store") as store:
        store.session("alice", MODEL).add(user("hello"))
    (tmp_path / "store").chmod(0o755)
    (tmp_path / "store" / "memory.db").chmod(0o644)
    MemoryStore(tmp_path / "store").close()
    assert "other users can look into" in caplog.text and "chmod 700" in caplog.text
    assert stat.S_IMODE((tmp_path / "store" / "memory.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["the folder", "the file", "another file"])
def test_a_store_that_is_taken_away_while_it_is_open_is_noticed(store: MemoryStore, what: str, tmp_path: Path) -> None:
    """What SQLite would go on writing is a file that no name leads to."""
    session = store.session("alice", MODEL)
    session.add(user("hello"))
    if what == "the folder":
        store.folder.rename(tmp_path / "elsewhere")
    else:
        (store.folder / "memory.db").rename(tmp_path / "elsewhere")
    if what == "another file":
        with MemoryStore(tmp_path / "new") as other:
            other.session("alice", MODEL)
        (tmp_path / "new" / "memory.db").rename(store.folder / "memory.db")
    for call in (lambda: session.add(user("lost")), session.messages, store.sessions):
        with pytest.raises(StoreError, match=r"removed or replaced .* Open the store"):
            call()
    assert what != "the folder" or not store.folder.exists()


def test_a_store_opened_read_only_is_looked_at_and_left_alone(store: MemoryStore) -> None:
    session = store.session("alice", MODEL)
    ids = session.add([user("word " * 40), user("more " * 40)])
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*") if not path.name.endswith("-shm")}
    with MemoryStore(store.folder, read_only=True) as looked:
        held = looked.session("alice", MODEL)
        assert [message.id for message in held.messages()] == ids and looked.verify().ok
        assert [one.text for one in held.recall("word")] == [one.text for one in session.recall("word")]
        for call in (
            lambda: held.add(user("x")),
            lambda: held.forget(ids),
            lambda: looked.delete("alice"),
            lambda: looked.session("bob", MODEL),
            looked.compact,
        ):
            with pytest.raises(StoreError, match="opened read-only"):
                call()
    assert before == {path: path.stat().st_mtime_ns for path in store.folder.rglob("*") if not path.name.endswith("-shm")}
    with pytest.raises(StoreError, match="holds no store"):
        MemoryStore(store.folder / "nowhere", read_only=True)
    assert not (store.folder / "nowhere").exists()


def test_names_that_look_alike_are_the_same_or_refused(store: MemoryStore) -> None:
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    store.session(composed, MODEL).add(user("hello"))
    assert [message.content for message in store.session(decomposed).messages()] == ["hello"]
    assert store.sessions() == [composed] and store.has("session", decomposed)
    with pytest.raises(SessionExistsError):
        store.session(composed).fork(decomposed)
    for unseen in ("a\u034f", "\u3164", "a\u115fb", "a\ufe01", "a\u200b", "a\u202eb"):
        with pytest.raises(InputError, match="cannot be a name"):
            store.session(unseen, MODEL)
    store.session("\u2764\ufe0f", MODEL)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_indexes_take_no_more_memory_than_they_may(tmp_path: Path) -> None:
    with MemoryStore(tmp_path, tiers=Tiers(hot_bytes=20_000)) as store:
        names = [f"user {number}" for number in range(12)]
        for name in names:
            store.session(name, MODEL).add(user(f"{name} says something " * 12))
        expected = {name: [one.text for one in store.session(name, MODEL).recall("says")] for name in names}
        for name in names[::-1]:
            assert [one.text for one in store.session(name, MODEL).recall("says")] == expected[name]
        held = [sum(index.nbytes for index in indexes if index) for indexes in store.open_indexes._open.values()]
        assert 1 < len(held) < 12 and sum(held[:-1]) <= 20_000


def test_a_huge_top_k_is_bounded(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session = store.session("alice", MODEL)
    session.add(user("word " * 200))
    everything = session.recall("word", 10**9)
    assert len(everything) > 5 and sum(len(one.text.split()) for one in everything) >= 200
    monkeypatch.setattr(ranking, "MOST_RECALLED", 5)
    assert len(session.recall("word", 10**9)) == 5


@pytest.mark.slow
def test_a_process_may_fork_while_threads_search(tmp_path: Path) -> None:
    """A lock that another thread held in that moment would never be released in the child."""
    process = start(crash_worker.fork_while_searching, str(tmp_path / "store"), str(tmp_path / "journal"))
    process.join(90)
    assert process.exitcode == 0
    assert journal_of(tmp_path / "journal") == [["done", 0]] * 12


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_time_that_jumps_is_believed_once_it_has_gone_on() -> None:
    clock: dict[str, float] = {"last": 0.0}

    def at(day: float) -> float:
        nonlocal clock
        believed, clock = retention.believable(clock, day * DAY)
        return believed / DAY

    assert [at(day) for day in (1, 20, 49)] == [1, 20, 49]
    assert at(400) == at(400.5) == 49, "a year is not believed at once"
    assert at(50) == 50, "the clock was wrong"
    assert at(400) == 50 and at(401.1) == 401.1, "it has gone on for a day"
    assert at(900) == 401.1 and at(950) == 900, "looked at once in fifty days: a step behind"
    assert at(3) == 3, "back is believed: nothing is forgotten for it"


def test_one_jump_of_the_clock_erases_nothing(tmp_path: Path) -> None:
    now = [1000 * DAY]
    with MemoryStore(tmp_path, clock=lambda: now[0]) as store:
        session = store.session("alice", MODEL)
        session.set_retention(age=timedelta(days=30))
        session.add(user("old"))
        now[0] += 3650 * DAY
        session.add(user("said while the clock was wrong"))
        now[0] -= 3650 * DAY - 60
        session.add(user("new"))
        assert session.messages()[0].content == "old"
        now[0] += 20 * DAY
        session.add(user("newer"))
        now[0] += 20 * DAY
        session.add(user("newest"))
        assert [message.content for message in session.messages()] == ["newer", "newest"], "also what the future said"


def test_a_first_message_from_the_future_does_not_switch_the_limit_off(tmp_path: Path) -> None:
    now = [5000 * DAY]
    with MemoryStore(tmp_path, clock=lambda: now[0]) as store:
        session = store.session("alice", MODEL)
        session.add(user("from the future"))
        now[0] = 1000 * DAY
        session.add(user("one"))
        session.set_retention(age=timedelta(days=10))
        for day in range(14):
            now[0] = (1000 + day) * DAY
            session.add(user(f"day {day}"))
        said = [message.content for message in session.messages()]
        assert "from the future" not in said and "one" not in said and said[-1] == "day 13"


def test_opening_forgets_nothing(tmp_path: Path) -> None:
    now = [1000 * DAY]
    with MemoryStore(tmp_path, clock=lambda: now[0]) as store:
        session = store.session("alice", MODEL)
        session.set_retention(age=timedelta(days=5))
        session.add(user("hello"))
        now[0] += 20 * DAY
        version = session.version()
        again = store.session("alice", MODEL)
        assert again.version() == version and len(again.messages()) == 1
        assert again.reply(user("hi"), **FAST).finish().text is not None
        assert again.messages()[0].content == "hi"


def test_a_store_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its locks, too, or others could write a session at the same time."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    with MemoryStore("memories") as store:
        monkeypatch.chdir(there)
        session = store.session("alice", MODEL)
        session.add(user("hello " * 40))
        assert session.recall("hello")
    assert not list(there.iterdir())
    assert {path.name for path in (here / "memories").iterdir()} >= {"locks", "indexes"}
