"""Answers that are owed, on each kind of database: noted, shown to other processes, stored or given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import postgres
import pytest
from tiny import SMALL, byte_tokenizer, light_model

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import SessionBusyError
from hmt_memory.sessions import owed
from hmt_memory.sessions.answer import Keeping

MODEL = light_model(tokenizer=byte_tokenizer(), config=SMALL)
HELLO = {"role": "user", "content": "My dog is called Rex."}
NOTE = {"status": "queued", "owner": "me", "about": {"id": "a"}}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed, "_LOOKS", 0.1)


@pytest.fixture
def store(place: Path | str) -> Iterator[MemoryStore]:
    with MemoryStore(place) as opened:
        yield opened


@pytest.fixture
def session(store: MemoryStore) -> Session:
    return store.session("alice", MODEL)


def test_a_note_lasts_until_the_answer_is_stored(store: MemoryStore, session: Session) -> None:
    session.set_metadata({"a": "b"})
    owed.note(session, "a", NOTE)
    owed.note(session, "other", NOTE)
    assert owed.change(session, "a", status="in_progress")
    with MemoryStore(store.folder) as again:
        noted = owed.noted(again.session("alice"), "a")
        assert noted is not None and noted["about"] == {"id": "a"} and noted["status"] == "in_progress"
        assert owed.noted(session.fork("what-if"), "a") is None
        assert again.unused(float("inf")) == ["what-if"], "who owes something is in use"
    reply = session.reply(HELLO, keeping=Keeping(owed="a"), max_new_tokens=4).finish()
    assert session.messages()[-1].content == reply.text and session.metadata() == {"a": "b"}
    assert owed.noted(session, "a") is None and not owed.change(session, "a", status="failed")
    assert owed.is_owing(session)
    owed.drop(session, "other")
    assert not owed.is_owing(session)


@pytest.mark.parametrize(
    "gives_up",
    [lambda session: owed.drop(session, "a"), lambda session: owed.change(session, "a", status="cancelled")],
    ids=["deleted", "cancelled"],
)
def test_an_answer_that_was_given_up_is_not_stored(session: Session, gives_up: Callable[[Session], object]) -> None:
    owed.note(session, "a", NOTE)
    reply = session.reply(HELLO, keeping=Keeping(owed="a"), max_new_tokens=8)
    next(reply)
    gives_up(session)
    with pytest.raises(SessionBusyError, match="cancelled or deleted"):
        reply.finish()
    assert session.messages() == []
    assert not owed.change(session, "a", status="failed"), "it stays as it ended"


def test_notes_are_so_many_and_the_oldest_go(session: Session) -> None:
    names = [str(number) for number in range(owed._MOST + 5)]
    for name in names:
        owed.note(session, name, NOTE)
    assert [name for name in names if owed.noted(session, name)] == names[5:]


def test_a_note_of_an_answer_that_is_being_written_outlasts_those_that_have_ended(session: Session) -> None:
    owed.note(session, "first", NOTE)
    for number in range(owed._MOST):
        owed.note(session, str(number), {**NOTE, "status": "failed"})
    assert owed.noted(session, "first") and owed.noted(session, "0") is None
    owed.note(session, "last", NOTE)
    assert owed.noted(session, "last") and owed.noted(session, "1") is None, "the oldest goes, whatever was noted before it"


def test_a_process_is_seen_as_long_as_it_is_there(store: MemoryStore) -> None:
    presence = owed.Presence(store)
    assert not owed.is_present(store, presence.name)
    with MemoryStore(store.folder) as other:
        assert presence.begin() == presence.begin()
        assert owed.is_present(other, presence.name) and owed.is_present(store, presence.name)
        presence.end()
        assert not owed.is_present(other, presence.name) and not owed.is_present(store, presence.name)


def test_a_process_that_cannot_be_seen_says_so_and_may_try_again(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    presence = owed.Presence(store)
    with monkeypatch.context() as patched:

        def refuses(*_: object, **__: object) -> None:
            raise SessionBusyError("nobody gets it")

        patched.setattr(store.database, "lock", refuses)
        with pytest.raises(SessionBusyError, match="nobody gets it"):
            presence.begin()

        def breaks(*_: object, **__: object) -> None:
            raise OSError("the disk is read-only")

        patched.setattr(store.database, "lock", breaks)
        with pytest.raises(OSError, match="read-only"):
            presence.begin()
    assert owed.is_present(store, presence.begin())
    presence.end()


def test_a_process_is_seen_again_when_the_server_has_lost_its_connections(postgres_server: Any) -> None:
    url = postgres.new_store(postgres_server)
    with MemoryStore(url) as store, MemoryStore(url) as other:
        presence = owed.Presence(store)
        name = presence.begin()
        for _ in range(2):
            postgres.cut(url)
            assert owed.is_present(other, name)
        presence.end()
        assert not owed.is_present(other, name)
    postgres.drop(url)
