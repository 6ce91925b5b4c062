"""What is kept in memory and on disk: bounded, the same answers from every tier, nothing stale, nothing that is forgotten."""

from __future__ import annotations

import errno
import gc
import random
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from stored import user
from tiny import SMALL, byte_tokenizer, tiny_model

from hmt_memory import MemoryStore, Session, Tiers, ViewConfig
from hmt_memory.errors import ConfigError, SessionBusyError, StoreError
from hmt_memory.hot import Hot
from hmt_memory.sessions import open_indexes, session_memory
from hmt_memory.store import lineage, warm
from hmt_memory.store.index.words import _hash

HALVES = replace(SMALL, memory_tokens=3, recalled_tokens=1)  # the carried half of P is the same from turn to turn
MODEL = tiny_model(config=HALVES, tokenizer=byte_tokenizer()).with_view(
    ViewConfig(recent_tokens=110, note_tokens=40, pinned_tokens=40)
)
ROOMY = MODEL.with_view(ViewConfig(recent_tokens=200, note_tokens=10, pinned_tokens=20))
NONE = Tiers(hot_bytes=0, warm_bytes=0)
SECRET = "zebu"
QUESTION = "What did you say to me about it when we met last time?"


@pytest.fixture
def store(place: Path | str) -> Iterator[MemoryStore]:
    with MemoryStore(place) as opened:
        yield opened


def turn(session: Session, text: str, **options: Any) -> str:
    return "".join(session.reply(user(text), max_new_tokens=6, min_new_tokens=6, **options))


def recalled(session: Session, query: str = "river") -> list[tuple[str, float]]:
    return [(passage.text, passage.weight) for passage in session.recall(query, 4)]


def files(store: MemoryStore) -> list[Path]:
    return sorted(path for path in store.open_indexes.folder.glob("*") if path.name != "erasures")


def warm_bytes(store: MemoryStore) -> int:
    return sum(path.stat().st_size for path in files(store))


def traces_of(store: MemoryStore, session: Session) -> list[bytes]:
    """Return what index files hold of a session that nothing else says: its memories, and the secret word."""
    with store.database.reading() as db:
        parts = lineage.of(db, session._row(db))
        memories = [row.memory[-64:] for row in lineage.segments(db, parts, 0, lineage.segment_count(db, parts))]
    return [*memories, _hash(SECRET).to_bytes(8, "little")]


def held(folder: Path, traces: list[bytes]) -> int:
    """Count the traces that are in any file of a folder."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return sum(trace in content for trace in traces)


# --- the account --------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_and_what_is_in_use_stays() -> None:
    hot, gone = Hot(100), []
    for name in "abc":
        hot.keep("letters", name, 40, lambda name=name: gone.append(name))
    hot.touch("a")
    hot.settle()
    assert gone == ["b"] and hot.bytes == 80 and hot.by_kind() == {"letters": 80}
    hot.using({"c"})
    hot.keep("letters", "d", 90, lambda: gone.append("d"))
    hot.settle()
    assert gone == ["b", "a", "d"] and hot.bytes == 40
    hot.drop("c")
    assert hot.bytes == 0


def test_what_is_used_while_it_goes_is_in_no_account_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryStore(tmp_path) as store:
        session = store.session("alice", MODEL)
        session.add(user("the blue river on Tuesday " * 9))
        let_go = store.open_indexes._let_go

        def used_meanwhile(number: int) -> None:
            store.open_indexes._used.add(number)
            store.hot.limit = 1 << 30
            store.open_indexes.settle()
            let_go(number)

        monkeypatch.setattr(store.open_indexes, "_let_go", used_meanwhile)
        recalled(session)
        store.hot.using(())
        store.hot.limit = 0
        store.hot.settle()
        assert not store.open_indexes._open and not store.hot.by_kind().get("indexes")


@pytest.mark.parametrize("gone", ["deleted", "forgotten"])
def test_nothing_of_what_is_forgotten_stays_in_a_session_that_is_open(tmp_path: Path, gone: str) -> None:
    with MemoryStore(tmp_path) as store:
        session, other = store.session("alice", MODEL), store.session("bob", MODEL)
        (number,) = session.add(user(f"{SECRET} is my secret."))
        other.add(user("Hello."))
        if gone == "deleted":
            store.delete("alice")
        else:
            store.session("alice").forget([number])
        assert session._cache is None and other._cache is not None
        assert store.hot.by_kind()["memories"] == other._cache.state.nbytes


def counted(store: MemoryStore, sessions: list[Session]) -> dict[str, int]:
    """Count what is really in memory."""
    indexes = store.open_indexes._open.values()
    kept = {
        "indexes": sum(index.nbytes for opened in indexes for index in opened if index),
        "views": store.view_cache.bytes,
        "memories": sum(session._cache.state.nbytes for session in sessions if session._cache),
    }
    return {kind: size for kind, size in kept.items() if size}


@pytest.mark.parametrize("seed", [1, 2])
def test_no_more_is_kept_than_the_bounds_allow_once_a_call_has_returned(tmp_path: Path, seed: int) -> None:
    """Law, apart from the index that was used last; and the account says what is there."""
    chance = random.Random(seed)
    tiers = Tiers(hot_bytes=chance.choice([30_000, 250_000]), warm_bytes=20_000)
    with MemoryStore(tmp_path, tiers=tiers, background=seed == 2) as store:
        sessions = [store.session(f"user {number}", MODEL) for number in range(4)]
        for _ in range(24):
            session = chance.choice(sessions)
            action = chance.choice(["add", "recall", "reply", "prepare", "forget"])
            if action == "add":
                session.add(user("the blue river on Tuesday " * chance.randrange(1, 9)))
            elif action == "recall":
                session.recall("river")
            elif action == "reply":
                turn(session, "And now?")
            elif action == "prepare":
                session.prepare()
            elif messages := session.messages():
                session.forget([messages[0].id])
            store.behind.do("nothing", lambda: None)
            if store.behind.threaded:
                store.behind._thread[1].submit(lambda: None).result()
            assert {kind: size for kind, size in store.hot.by_kind().items() if size} == counted(store, sessions)
            in_use = max([sum(i.nbytes for i in opened if i) for opened in store.open_indexes._open.values()], default=0)
            assert store.hot.bytes <= max(tiers.hot_bytes, in_use), action
            assert warm_bytes(store) <= tiers.warm_bytes, action
        assert len(store.open_indexes._open) < 4 or tiers.hot_bytes > 30_000
    with MemoryStore(tmp_path, tiers=tiers) as store:
        assert warm_bytes(store) <= 20_000
    with MemoryStore(tmp_path, tiers=NONE) as store:
        assert not files(store), "a bound that is lowered holds from the opening on"


def test_a_session_that_nobody_holds_is_in_no_account(tmp_path: Path) -> None:
    with MemoryStore(tmp_path) as store:
        store.session("alice", MODEL).add(user("hello"))
        gc.collect()
        assert store.hot.by_kind().get("memories", 0) == 0


# --- the same from every tier ---------------------------------------------------------------------------------------------


def lived(place: Path | str, tiers: Tiers, *, ahead: bool = False) -> list[Any]:
    """Talk, with the store opened again in between. Returns what was said and recalled."""
    said: list[Any] = []
    for day in range(2):
        with MemoryStore(place, tiers=tiers) as store:
            for name in ("alice", "bob"):
                session = store.session(name, MODEL)
                for number in range(2):
                    if ahead:
                        session.prepare()
                    said.append(turn(session, f"day {day} of {name}, the {number} river is blue and long"))
                said.append(recalled(session))
            corpus = store.corpus("garden", MODEL)
            corpus.add_documents([f"Roses grow by the river on day {day}. " * 4])
            session.attach("garden")
            said.append(recalled(session))
            ids = [message.id for message in session.messages()]
            session.forget(ids[1:3])
            said.append(recalled(session))
    return said


@pytest.mark.slow
def test_answers_and_recall_are_the_same_from_every_tier(place: Path | str, tmp_path: Path) -> None:
    chosen = Tiers(fetch_ahead=True, warm_folder=str(tmp_path / "warm"))
    assert lived(place, NONE) == lived(tmp_path / "ahead", chosen, ahead=True)


def test_an_index_comes_from_the_file_of_the_last_worker(place: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryStore(place) as store:
        store.session("alice", MODEL).add(user("the blue river on Tuesday " * 20))
        expected = recalled(store.session("alice", MODEL))
    with MemoryStore(place) as store:
        made: list[Any] = []
        monkeypatch.setattr("hmt_memory.store.index.vectors._Vectors._extend", lambda self, *rest: made.append(rest))
        assert recalled(store.session("alice", MODEL)) == expected
        assert not made, "it was made of the rows"


def test_an_index_is_written_behind_an_answer_so_that_a_killed_worker_leaves_it(place: Path | str) -> None:
    with MemoryStore(place, background=True) as store:
        session = store.session("alice", MODEL)
        session.add(user("the blue river on Tuesday " * 20))
        turn(session, "And now?")
        store.behind._thread[1].submit(lambda: None).result()
        assert {path.suffix for path in files(store)} >= {".index", ".words"}


# --- what is erased ---------------------------------------------------------------------------------------------------------


def remembered(store: MemoryStore) -> tuple[Session, int, list[bytes]]:
    """Return a session whose index files hold a secret, the message that tells it, and traces of it."""
    session = store.session("alice", MODEL)
    session.add(user("Hello there. " * 4))
    (number,) = session.add(user(f"{SECRET} {SECRET} {SECRET} {SECRET} is my secret."))
    session.add(user("the blue river on Tuesday " * 20))
    session.recall("river")
    store.open_indexes.save(session.number, store.open_indexes._open[session.number], always=True)
    traces = traces_of(store, session)[6:]  # those before it stay
    assert held(store.open_indexes.folder, traces) == len(traces) > 4
    return session, number, traces


def test_what_is_forgotten_is_in_no_file_once_the_call_returns(store: MemoryStore) -> None:
    session, number, traces = remembered(store)
    folder = store.open_indexes.folder
    path = store.open_indexes.paths(session.number)[0]
    (folder / f".{path.name}.0123456789abcdef").write_bytes(path.read_bytes()[:-7])  # of a worker killed as it wrote
    session.forget([number])
    assert held(folder, traces) == 0
    recalled(session)
    store.open_indexes.save(session.number, store.open_indexes._open[session.number], always=True)
    assert held(folder, traces) == 0 and store.verify().ok and not store.verify().notes


def test_what_is_beyond_the_limits_of_a_session_is_in_no_file(store: MemoryStore) -> None:
    session, _, traces = remembered(store)
    session.set_retention(messages=1)
    assert held(store.open_indexes.folder, traces) == 0
    session.set_retention(age=timedelta(microseconds=1))
    assert held(store.open_indexes.folder, traces) == 0 and not session.messages()


def test_files_of_a_time_before_a_folder_was_chosen_are_deleted_too(place: Path | str, tmp_path: Path) -> None:
    with MemoryStore(place) as store:
        _, number, traces = remembered(store)
        before = store.open_indexes.folder
    with MemoryStore(place, tiers=Tiers(warm_folder=str(tmp_path / "warm"))) as store:
        assert store.open_indexes.folder != before and held(before, traces) > 0
        store.session("alice").forget([number])
        assert held(before, traces) == 0


@pytest.mark.parametrize("when", ["used", "opened", "busy", "busy behind"])
def test_what_another_worker_forgets_is_in_no_file_before_this_one_uses_the_session_again(
    place: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Each worker has a warm folder of its own."""
    here, there = (Tiers(warm_folder=str(tmp_path / name)) for name in ("here", "there"))
    behind = when == "busy behind"
    with MemoryStore(place, tiers=here, background=behind) as store, MemoryStore(place, tiers=there) as other:
        session, number, traces = remembered(store)
        other.session("alice", MODEL).forget([number])
        assert held(tmp_path / "here", traces) > 0, "nobody can reach it yet"
        if when == "used":
            texts = [passage.text for passage in session.recall(SECRET, 50)]
            assert texts and not any(SECRET in text for text in texts)
        elif when == "opened":
            MemoryStore(place, tiers=here).close()
        else:  # with another session, for a while
            monkeypatch.setattr(open_indexes, "_LOOK_AGAIN", 0)
            turn(store.session("bob", MODEL), "Hello.")
            if behind:
                store.behind._thread[1].submit(lambda: None).result()
        assert held(tmp_path / "here", traces) == 0


@pytest.mark.parametrize("warmed", [False, True])
def test_what_another_worker_says_is_recalled(place: Path | str, tmp_path: Path, warmed: bool) -> None:
    here, there = (Tiers(warm_folder=str(tmp_path / name)) for name in ("here", "there"))
    with MemoryStore(place, tiers=here) as store, MemoryStore(place, tiers=there) as other:
        session = store.session("alice", MODEL)
        session.add(user("the blue river on Tuesday " * 9))
        recalled(session)
        if warmed:
            store.open_indexes.save(session.number, store.open_indexes._open[session.number], always=True)
            store.open_indexes._let_go(session.number)
        other.session("alice", MODEL).add(user(f"{SECRET} {SECRET} {SECRET} {SECRET} is my secret, and yours."))
        assert SECRET in str(recalled(session, SECRET)) and recalled(session) == recalled(other.session("alice", MODEL))


def test_documents_that_another_worker_removes_leave_the_file(place: Path | str, tmp_path: Path) -> None:
    here, there = (Tiers(warm_folder=str(tmp_path / name)) for name in ("here", "there"))
    with MemoryStore(place, tiers=here) as store, MemoryStore(place, tiers=there) as other:
        corpus = store.corpus("garden", MODEL)
        first, _ = corpus.add_documents([f"{SECRET} {SECRET} grows. " * 5, "Roses grow by the river. " * 9])
        corpus.recall("roses")
        store.open_indexes.save(1, store.open_indexes._open[1], always=True)
        trace = [_hash(SECRET).to_bytes(8, "little")]
        assert held(tmp_path / "here", trace) == 1
        other.corpus("garden").remove([first])
        assert corpus.recall("roses") and held(tmp_path / "here", trace) == 0


@pytest.mark.parametrize("harm", ["torn", "flipped", "foreign", "another's"])
def test_a_torn_or_foreign_file_is_as_none(tmp_path: Path, harm: str) -> None:
    with MemoryStore(tmp_path) as store:
        for name in ("alice", "bob"):
            session = store.session(name, MODEL)
            session.add(user(f"{name} says: the blue river on Tuesday " * 9))
            expected = recalled(session)
        folder, number = store.open_indexes.folder, session.number
    whole = {path: path.read_bytes() for path in folder.glob(f"{number}.*")}
    for path, content in whole.items():
        another = path.with_name(path.name.replace(f"{number}.", f"{number - 1}.")).read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        torn = content[:middle]
        path.write_bytes({"torn": torn, "flipped": flipped, "foreign": b"#!/bin/sh\n", "another's": another}[harm])
    with MemoryStore(tmp_path) as store:
        assert recalled(store.session("bob", MODEL)) == expected
    assert {path: path.read_bytes() for path in whole} == whole, "they were written anew"


# --- files on disk --------------------------------------------------------------------------------------------------------


def test_the_files_that_were_used_last_stay(tmp_path: Path) -> None:
    for number in range(3):
        for suffix in ("index", "words"):
            (tmp_path / f"{number}.{suffix}").write_bytes(bytes(50))
    (tmp_path / ".0.index.abc").write_bytes(bytes(10))
    (tmp_path / "erasures").write_bytes(bytes(500))
    warm.touch(tmp_path / "0.words")
    warm.trim(tmp_path, 220)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".0.index.abc",
        "0.index",
        "0.words",
        "2.index",
        "2.words",
        "erasures",
    ]
    warm.trim(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["erasures"]


def test_a_file_that_cannot_be_deleted_hinders_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryStore(tmp_path) as store:
        for name in ("alice", "bob"):
            store.session(name, MODEL).add(user("the blue river on Tuesday " * 9))
            recalled(store.session(name, MODEL))
    (tmp_path / "indexes" / "lost+found").mkdir()
    unlink = Path.unlink

    def refuses(path: Path, missing_ok: bool = False) -> None:
        if path.name == "1.index":
            raise PermissionError(f"{path} is open elsewhere")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuses)
    with MemoryStore(tmp_path, tiers=NONE) as store:
        assert [path.name for path in files(store)] == ["1.index", "lost+found"]
        session = store.session("alice", MODEL)
        assert recalled(session)
        with pytest.raises(StoreError, match=r"1\.index cannot be deleted.*nothing is forgotten"):
            session.forget([session.messages()[0].id])
        assert session.messages() and recalled(session)


def test_workers_that_open_a_folder_at_once_leave_each_others_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, tiers = tmp_path / "store", Tiers(warm_folder=str(tmp_path / "warm"))
    with MemoryStore(place, tiers=tiers) as store:
        remembered(store)
        folder = store.open_indexes.folder
        (left := folder / ".1.index.0123456789abcdef").write_bytes(b"of a worker killed as it wrote")
        store.rename("alice", "carol")  # so that files are compared with what is there
    replacing, begun = warm.replacing, []

    @contextmanager
    def meanwhile(path: Path, **options: Any) -> Iterator[Any]:
        with replacing(path, **options) as file:
            yield file
            if not begun:
                begun.append(path)
                MemoryStore(place, tiers=tiers).close()

    monkeypatch.setattr(warm, "replacing", meanwhile)
    MemoryStore(place, tiers=tiers).close()
    assert begun and not left.exists() and (folder / "1.index").exists()
    with MemoryStore(place, tiers=tiers) as store:
        store.rename("carol", "alice")
        exclusive, written = store.database.exclusive, folder / ".1.index.fedcba9876543210"

        @contextmanager
        def then_written() -> Iterator[None]:
            with exclusive():
                yield
            written.write_bytes(b"by whoever had the lock next")

        monkeypatch.setattr(store.database, "exclusive", then_written)
        warm.drop_outdated(folder, store.database)
        assert written.exists()


def test_a_store_opens_while_somebody_writes_for_long(
    place: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = Tiers(warm_folder=str(tmp_path / "warm"))
    with (
        MemoryStore(place, tiers=tiers) as store,
        MemoryStore(place, tiers=Tiers(warm_folder=str(tmp_path / "there"))) as other,
    ):
        _, number, traces = remembered(store)
        other.session("alice", MODEL).forget([number])
        assert held(tmp_path / "warm", traces)
        open_folder = warm.open_folder

        def while_another_writes(*arguments: Any) -> None:
            with other.database.exclusive():
                open_folder(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(warm, "open_folder", while_another_writes)
            opened = MemoryStore(place, tiers=tiers, timeout=0.1)
        with opened:
            assert opened.session("alice", MODEL).messages()
            opened.session("bob", MODEL).prepare()
        assert not held(tmp_path / "warm", traces), "it looks as soon as it works"


def test_a_store_opens_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, tiers = tmp_path / "store", Tiers(warm_folder=str(tmp_path / "warm"))
    with (
        MemoryStore(place, tiers=tiers) as store,
        MemoryStore(place, tiers=Tiers(warm_folder=str(tmp_path / "there"))) as other,
    ):
        _, number, traces = remembered(store)
        other.session("alice", MODEL).forget([number])

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(warm, "replacing", full)
    monkeypatch.setattr("hmt_memory.store.index.derived.replacing", full)
    with MemoryStore(place, tiers=tiers) as store:
        assert not held(tmp_path / "warm", traces) and recalled(store.session("alice", MODEL))


def test_files_are_written_where_their_folder_was_deleted(tmp_path: Path) -> None:
    with MemoryStore(tmp_path / "store", tiers=Tiers(warm_folder=str(tmp_path / "warm"))) as store:
        session = store.session("alice", MODEL)
        session.add(user("the blue river on Tuesday " * 9))
        recalled(session)
        shutil.rmtree(tmp_path / "warm")
    assert files(store)


def test_an_index_that_is_too_large_pushes_no_other_out(tmp_path: Path) -> None:
    with MemoryStore(tmp_path, tiers=Tiers(warm_bytes=6_000)) as store:
        for name, times in (("small", 3), ("large", 60)):
            store.session(name, MODEL).add(user("the blue river on Tuesday " * times))
            store.session(name, MODEL).recall("river")
    assert {path.name for path in (tmp_path / "indexes").iterdir()} == {"1.index", "1.words"}


def test_stores_share_a_warm_folder_and_know_nothing_of_each_other(tmp_path: Path) -> None:
    tiers = Tiers(warm_folder=str(tmp_path / "warm"))
    for name in ("one", "two"):
        with MemoryStore(tmp_path / name, tiers=tiers) as store:
            session = store.session("alice", MODEL)
            session.add(user(f"{name} is the blue river on Tuesday " * 9))
            assert name in recalled(session, name)[0][0]
        assert not list((tmp_path / name).rglob("*.index"))
    assert len(list((tmp_path / "warm").rglob("*.index"))) == 2


def test_looking_writes_and_deletes_no_file(tmp_path: Path) -> None:
    with MemoryStore(tmp_path) as store:
        store.session("alice", MODEL).add(user("the blue river on Tuesday " * 9))
        expected = recalled(store.session("alice", MODEL))
    path = tmp_path / "indexes" / "1.index"
    path.write_bytes(b"torn")
    with MemoryStore(tmp_path, read_only=True, tiers=NONE) as store:
        assert recalled(store.session("alice", MODEL)) == expected
    assert path.read_bytes() == b"torn"


# --- ahead ----------------------------------------------------------------------------------------------------------------


def test_what_is_made_ahead_is_what_the_answer_begins_with(place: Path | str) -> None:
    with MemoryStore(place) as store:
        session = store.session("alice", ROOMY)
        session.add([user("What is blue?"), {"role": "assistant", "content": "The river on Tuesday."}] * 3)
    with MemoryStore(place) as store:
        session = store.session("alice", ROOMY)
        session.prepare()
        before = session.messages()
        reply = session.reply(user(QUESTION), max_new_tokens=1)
        "".join(reply)
        assert reply.usage.cached_tokens > reply.usage.view_tokens / 2 and session.messages()[: len(before)] == before
        session.prepare(tools=[], instructions="Be kind.")
        reply = session.reply(user(QUESTION), instructions="Be kind.", max_new_tokens=1)
        "".join(reply)
        assert reply.usage.cached_tokens > reply.usage.view_tokens / 2
        session.prepare()
        session.forget([before[0].id])
        assert store.view_cache.bytes == 0


@pytest.mark.slow
def test_the_next_view_is_made_behind_an_answer(tmp_path: Path) -> None:
    shares = []
    for ahead in (False, True):
        with MemoryStore(tmp_path / str(ahead), background=True, tiers=Tiers(fetch_ahead=ahead)) as store:
            session, read = store.session("alice", ROOMY), []
            for number in range(6):
                reply = session.reply(user(f"{number} {QUESTION}"), max_new_tokens=12, min_new_tokens=12)
                "".join(reply)
                read.append(reply.usage.view_tokens - reply.usage.cached_tokens)
                store.behind._thread[1].submit(lambda: None).result()
            shares.append(sum(read[1:]))
    assert shares[1] < 0.7 * shares[0]


@pytest.mark.parametrize("what", ["answered", "prepared"])
def test_no_view_is_kept_of_what_was_forgotten_before_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with MemoryStore(tmp_path) as store:
        session = store.session("alice", ROOMY)
        ids = session.add([user("What is blue?"), {"role": "assistant", "content": "The river on Tuesday."}] * 3)
        if what == "answered":
            reply = session.reply(user(QUESTION), max_new_tokens=1)
            store.session("alice").forget(ids[:1])
            with pytest.raises(SessionBusyError):
                reply.finish()
        else:
            beginning = session_memory.beginning

            def forgotten_meanwhile(*arguments: Any, **options: Any) -> Any:
                store.session("alice").forget(ids[:1])
                return beginning(*arguments, **options)

            monkeypatch.setattr(session_memory, "beginning", forgotten_meanwhile)
            session.prepare()
        assert store.view_cache.bytes == 0


def test_nothing_is_made_ahead_of_a_session_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MemoryStore(tmp_path, background=True, tiers=Tiers(fetch_ahead=True)) as store:
        session, go_on = store.session("alice", ROOMY), threading.Event()
        store.behind.do("waiting", lambda: go_on.wait(10) and None)
        turn(session, "What is blue?")
        store.delete("alice")
        go_on.set()
        store.behind._thread[1].submit(lambda: None).result()
        assert store.view_cache.bytes == 0 and not caplog.records


def test_an_answer_waits_for_what_is_being_read_ahead_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryStore(tmp_path) as store, ThreadPoolExecutor(2) as threads:
        session = store.session("alice", ROOMY)
        session.add([user("What is blue?"), {"role": "assistant", "content": "The river on Tuesday."}] * 3)
        extend, begun, go_on = ROOMY.backbone.extend, threading.Event(), threading.Event()

        def slow(*arguments: Any) -> Any:
            begun.set()
            assert go_on.wait(10)
            return extend(*arguments)

        monkeypatch.setattr(ROOMY.backbone, "extend", slow)
        ahead = threads.submit(session.prepare)
        assert begun.wait(10)
        monkeypatch.setattr(ROOMY.backbone, "extend", extend)
        reply = session.reply(user(QUESTION), max_new_tokens=1)
        answer = threads.submit(reply.finish)
        assert wait([answer], timeout=0.3).not_done
        go_on.set()
        ahead.result(10)
        assert answer.result(10).usage.cached_tokens > reply.usage.view_tokens / 2


class Parrot:
    """A chat model."""

    def answer(self, messages: Any, **options: Any) -> Iterator[str]:
        yield "The river."


def test_no_view_is_made_ahead_of_another_model_s_answer(tmp_path: Path) -> None:
    with MemoryStore(tmp_path, background=True, tiers=Tiers(fetch_ahead=True)) as store:
        session = store.session("alice", ROOMY)
        assert "".join(session.reply(user("the blue river on Tuesday " * 9), answerer=Parrot())) == "The river."
        store.behind._thread[1].submit(lambda: None).result()
        assert store.view_cache.bytes == 0 and session.number in store.open_indexes._open


def test_an_empty_session_is_prepared(tmp_path: Path) -> None:
    with MemoryStore(tmp_path) as store:
        session = store.session("alice", MODEL)
        session.prepare()
        assert not session.messages()


# --- the policy -------------------------------------------------------------------------------------------------------------


def test_the_environment_sets_the_tiers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Tiers.of_environment() == Tiers()
    for name, value in (("HOT_MIB", "7"), ("WARM_MIB", "0"), ("WARM_FOLDER", str(tmp_path)), ("FETCH_AHEAD", "1")):
        monkeypatch.setenv(f"HMT_{name}", value)
    wanted = Tiers(hot_bytes=7 << 20, warm_bytes=0, warm_folder=str(tmp_path), fetch_ahead=True)
    assert Tiers.of_environment() == wanted
    with MemoryStore(tmp_path / "store") as store:
        assert store.tiers == wanted and store.hot.limit == 7 << 20
    for name, value, message in (("HOT_MIB", "much", "a number of MiB"), ("FETCH_AHEAD", "yes", "Set it to 1 or 0")):
        with monkeypatch.context() as patch:
            patch.setenv(f"HMT_{name}", value)
            with pytest.raises(ConfigError, match=message):
                Tiers.of_environment()
    with pytest.raises(ConfigError, match="0 or more"):
        Tiers(hot_bytes=-1)
