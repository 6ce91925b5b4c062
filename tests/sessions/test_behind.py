"""Reading behind an answer: nobody waits for it, nothing is lost by it, and the memory is the same."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import DECODING, memory_of, user
from tiny import REMEMBERING, byte_tokenizer, tiny_model

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import StoreFullError

MODEL = tiny_model(config=REMEMBERING, tokenizer=byte_tokenizer())
OTHER = tiny_model(config=REMEMBERING, tokenizer=byte_tokenizer(), seed=2)  # reads nothing while it answers
LONG_ANSWER = DECODING | {"max_new_tokens": 80, "min_new_tokens": 80, "answerer": OTHER}


def segments(session: Session) -> int:
    return int(session.stats()["segments"])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Reading behind an answer begins when this is set."""
    free, read = threading.Event(), Session._read_behind

    def waiting(session: Session) -> None:
        assert free.wait(30)
        read(session)

    monkeypatch.setattr(Session, "_read_behind", waiting)
    return free


def test_an_answer_does_not_wait_and_closing_does(tmp_path: Path, held: threading.Event) -> None:
    store = MemoryStore(tmp_path, background=True)
    session = store.session("alice", MODEL)
    reply = session.reply(user("hello"), **LONG_ANSWER).finish()
    assert reply.message_ids == [1, 2] and reply.text == session.messages()[-1].content
    before = segments(session)
    held.set()
    store.close()
    with MemoryStore(tmp_path) as again:
        assert segments(again.session("alice", MODEL)) > before


def test_the_next_call_reads_what_is_not_read_yet(tmp_path: Path, held: threading.Event) -> None:
    memories = []
    for background in (True, False):
        held.clear() if background else held.set()
        with MemoryStore(tmp_path / str(background), background=background) as store:
            session = store.session("alice", MODEL)
            session.reply(user("hello"), **LONG_ANSWER).finish()
            said = session.reply(user("and then?"), **LONG_ANSWER).finish().text
            held.set()
        with MemoryStore(tmp_path / str(background)) as store:
            memories.append((said, memory_of(store.session("alice", MODEL))))
    (said, memory), (expected, whole) = memories
    assert said == expected
    np.testing.assert_allclose(memory, whole, atol=2e-3)


def test_what_fails_behind_an_answer_is_told_and_done_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with MemoryStore(tmp_path, background=True) as store:
        session = store.session("alice", MODEL)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_read_pending", failing_behind(Session._read_pending))
            session.reply(user("hello"), **LONG_ANSWER).finish()
            store.behind.close()
        assert "behind an answer has failed" in caplog.text and "no memory left" in caplog.text
        before = segments(session)
        session.add(user("more"))
        assert segments(session) > before and store.verify().ok


def failing_behind(read: Any) -> Any:
    def work(session: Session, *arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("no memory left")
        return read(session, *arguments)

    return work


def test_an_answer_that_outlives_its_store_ends(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path, background=True)
    reply = store.session("alice", MODEL).reply(user("hello"), **DECODING)
    while not reply.message_ids:
        next(reply)
    store.close()
    assert list(reply) == []
    with MemoryStore(tmp_path) as again:
        assert len(again.session("alice").messages()) == 2


def test_a_full_disk_behind_an_answer_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryStore(tmp_path, background=True) as store:
        session = store.session("alice", MODEL)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_store_segments", lambda *_: (_ for _ in ()).throw(StoreFullError("full")))
            session.reply(user("hello"), **LONG_ANSWER).finish()
            store.behind.close()
        assert len(session.messages()) == 2 and store.verify().ok
