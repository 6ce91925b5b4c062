"""Reading behind an answer: nobody waits for it, nothing is lost by it, and the memory is the same."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import SUPPORT
from stored import DECODING, bytes_in, memory_of, user
from tiny import REMEMBERING, byte_tokenizer, tiny_model

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import StoreFullError

MODEL = tiny_model(config=REMEMBERING, tokenizer=byte_tokenizer())
OTHER = tiny_model(config=REMEMBERING, tokenizer=byte_tokenizer(), seed=2)  # reads nothing while it answers
ANSWER: dict[str, Any] = DECODING | {"max_new_tokens": 150, "min_new_tokens": 150, "answerer": OTHER}


def segments(session: Session) -> int:
    return int(session.stats()["segments"])


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Reading behind an answer begins when this is set."""
    free, read = threading.Event(), Session._read_behind

    def waiting(session: Session) -> None:
        assert free.wait(30)
        read(session)

    monkeypatch.setattr(Session, "_read_behind", waiting)
    yield free
    free.set()


def test_an_answer_does_not_wait(tmp_path: Path, held: threading.Event) -> None:
    with MemoryStore(tmp_path, background=True) as store:
        session = store.session("alice", MODEL)
        reply = session.reply(user("hello"), **ANSWER).finish()
        assert reply.message_ids == [1, 2] and reply.text == session.messages()[-1].content
        before = segments(session)
        held.set()
        eventually(lambda: not session._lacks_segments(session._snapshot()))
        assert segments(session) > before + 4, "more than is read at a time"


def test_others_get_their_turn_and_closing_waits_for_no_more_than_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, pieces = Session._read_pending, []

    def reading(session: Session, *given: Any, **options: Any) -> Any:
        if "most" in options:
            pieces.append(options["most"])
            session._store.behind.closing = True
        return read(session, *given, **options)

    monkeypatch.setattr(Session, "_read_pending", reading)
    with MemoryStore(tmp_path, background=True) as store:
        store.session("alice", MODEL).reply(user("hello"), **ANSWER).finish()
        eventually(lambda: bool(pieces))
    assert pieces == [4]
    with MemoryStore(tmp_path) as again:
        session = again.session("alice", MODEL)
        assert session._lacks_segments(session._snapshot())
        assert len(memory_of(session)) and not session._lacks_segments(session._snapshot())


@pytest.mark.slow
def test_the_next_call_reads_what_is_not_read_yet(tmp_path: Path, held: threading.Event) -> None:
    memories = []
    for background in (True, False):
        held.clear() if background else held.set()
        with MemoryStore(tmp_path / str(background), background=background) as store:
            session = store.session("alice", MODEL)
            session.reply(user("hello"), **ANSWER).finish()
            said = session.reply(user("and then?"), **ANSWER).finish().text
            held.set()
        with MemoryStore(tmp_path / str(background)) as store:
            memories.append((said, memory_of(store.session("alice", MODEL))))
    (said, memory), (expected, whole) = memories
    assert said == expected
    np.testing.assert_allclose(memory, whole, atol=2e-3)


def test_what_fails_behind_an_answer_is_told_and_done_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(session: Session, *given: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("no memory left")
        return read(session, *given, **options)

    read = Session._read_pending
    with MemoryStore(tmp_path, background=True) as store:
        session = store.session("alice", MODEL)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_read_pending", failing)
            session.reply(user("hello"), **ANSWER).finish()
            eventually(lambda: "behind an answer in Session('alice') has failed" in caplog.text)
        assert "no memory left" in caplog.text
        before = segments(session)
        session.add(user("more"))
        assert segments(session) > before and store.verify().ok


def test_a_full_disk_behind_an_answer_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with MemoryStore(tmp_path, background=True) as store:
        session = store.session("alice", MODEL)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_store_segments", lambda *_: (_ for _ in ()).throw(StoreFullError("no room")))
            session.reply(user("hello"), **ANSWER).finish()
            eventually(lambda: "reading it into memory waits: no room" in caplog.text)
        before = segments(session)
        session.add(user("more"))
        assert segments(session) > before and len(session.messages()) == 3 and store.verify().ok


@pytest.mark.parametrize("forget", ["delete", "forget"])
def test_what_is_forgotten_before_it_is_read_is_in_no_file(
    forget: str, tmp_path: Path, held: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with MemoryStore(tmp_path, background=True) as store:
        session = store.session("alice", MODEL)
        reply = session.reply(user("a secret of mine"), **ANSWER).finish()
        if forget == "delete":
            store.delete("alice")
        else:
            session.forget(reply.message_ids)
        done = threading.Event()
        store.behind.do("the test", done.set)
        held.set()
        assert done.wait(30)
        assert bytes_in(tmp_path, b"a secret of mine") == [] and store.verify().ok
    assert not caplog.records


def test_limits_hold_when_the_answer_is_there(tmp_path: Path) -> None:
    with MemoryStore(tmp_path, background=True) as store:
        session = store.session("alice", MODEL)
        session.set_retention(messages=4)
        for turn in range(4):
            session.reply(user(f"turn {turn}"), **DECODING).finish()
            assert len(session.messages()) <= 4


def test_an_answer_that_outlives_its_store_ends(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path, background=True)
    reply = store.session("alice", MODEL).reply(user("hello"), **DECODING)
    while not reply.message_ids:
        next(reply)
    store.close()
    assert list(reply) == []
    with MemoryStore(tmp_path) as again:
        assert len(again.session("alice").messages()) == 2


@pytest.mark.slow
def test_an_answer_that_outlives_the_main_thread_is_whole(tmp_path: Path) -> None:
    """Threads that end after it are joined when no more work may begin behind anything."""
    code = (
        "import sys, threading, time; from crash_worker import MODEL, MemoryStore; from stored import DECODING, user\n"
        "session = MemoryStore(sys.argv[1], background=True).session('alice', MODEL)\n"
        "def late():\n"
        "    threading.main_thread().join(); time.sleep(0.3)\n"
        "    print(session.reply(user('hello'), **DECODING).finish().message_ids)\n"
        "threading.Thread(target=late).start()"
    )
    path = f"import sys; sys.path[:0] = [{str(SUPPORT)!r}]\n"
    done = subprocess.run([sys.executable, "-c", path + code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1, 2]\n" and "Traceback" not in done.stderr, done.stderr
