"""What is erased of a session is erased first in those that a server keeps for answers which go on from it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny import SMALL, byte_tokenizer, tiny_model

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import SessionBusyError, SessionNotFoundError, StoreInterruptedError
from hmt_memory.sessions.names import ASIDE
from hmt_memory.sessions.stored_session import StoredSession

MODEL = tiny_model(tokenizer=byte_tokenizer(), config=SMALL)
TALK = [{"role": "user", "content": "My code is 1234."}, {"role": "assistant", "content": "It is noted."}]
MORE = {"role": "user", "content": "And now?"}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with MemoryStore(tmp_path / "store") as store:
        yield store


@pytest.fixture
def alice(store: MemoryStore) -> Session:
    """A session with two answers that go on from it, one from the other, and a fork with a name."""
    session = store.session("alice", MODEL)
    session.add(TALK)
    session.fork(f"{ASIDE}1").add(MORE)
    store.session(f"{ASIDE}1").fork(f"{ASIDE}2")
    session.fork("copy")
    return session


def texts(store: MemoryStore) -> dict[str, list[str]]:
    return {name: [message.content for message in store.session(name).messages()] for name in store.sessions()}


@pytest.mark.parametrize("with_model", [True, False])
def test_messages_are_forgotten_by_what_goes_on_from_them(store: MemoryStore, alice: Session, with_model: bool) -> None:
    session = alice if with_model else store.session("alice")
    forgotten = session.forget([1])
    assert (forgotten.messages, forgotten.also_in) == (1, ("copy",))
    kept = {"alice": ["It is noted."], "copy": [TALK[0]["content"], "It is noted."]}
    assert texts(store) == kept | {f"{ASIDE}1": ["It is noted.", "And now?"], f"{ASIDE}2": ["It is noted.", "And now?"]}
    assert store.verify().ok


def test_what_is_beyond_the_limits_of_a_session_is_beyond_those_of_what_goes_on_from_it(
    store: MemoryStore, alice: Session
) -> None:
    alice.set_retention(messages=1)
    assert texts(store)["alice"] == ["It is noted."] == texts(store)[f"{ASIDE}1"][:1] == texts(store)[f"{ASIDE}2"][:1]
    assert store.verify().ok


def test_a_session_is_deleted_with_what_others_have_taken_over(store: MemoryStore, alice: Session) -> None:
    alice.add(MORE, replacing=2)
    store.delete("alice")
    kept = {"copy": [message["content"] for message in TALK]}
    assert texts(store) == kept | {f"{ASIDE}1": ["And now?"], f"{ASIDE}2": ["And now?"]}


@pytest.mark.parametrize("whole", [True, False])
def test_an_erasure_that_fails_half_way_is_finished_by_the_next(
    store: MemoryStore, alice: Session, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    def erase() -> object:
        return store.delete("alice") if whole else store.session("alice").forget([1])

    with monkeypatch.context() as patched:
        real, fails = StoredSession._forget, f"{ASIDE}2"

        def busy(self: StoredSession, ids: Any) -> Any:
            if self.name == fails:
                raise SessionBusyError("another process")
            return real(self, ids)

        patched.setattr(StoredSession, "_forget", busy)
        with pytest.raises(SessionBusyError):
            erase()
    assert texts(store)["alice"][0] == TALK[0]["content"], "it can be asked for again"
    erase()
    store.delete("copy")
    assert all(TALK[0]["content"] not in said for said in texts(store).values())


@pytest.mark.parametrize("whole", [True, False])
def test_what_goes_on_from_a_session_while_it_is_erased_forgets_too(
    store: MemoryStore, alice: Session, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    real, made = StoredSession._forget, []

    def forked(self: StoredSession, ids: Any) -> Any:
        if not made:
            made.append(store.session("alice").fork(f"{ASIDE}3"))
        return real(self, ids)

    monkeypatch.setattr(StoredSession, "_forget", forked)
    if whole:
        store.delete("alice")
    else:
        alice.forget([1])
    left = texts(store)
    assert made and TALK[0]["content"] not in left[f"{ASIDE}3"] and left["copy"][0] == TALK[0]["content"]


def test_an_erasure_that_the_database_runs_again_erases_no_session_before_what_goes_on_from_it(
    store: MemoryStore, alice: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server's answer comes between the first run and the second."""
    real = store.database.erasing
    late: list[str] = []

    def again(work: Any) -> Any:
        with suppress(StoreInterruptedError):
            real(lambda db: interrupted(work(db)))
        if not late and not any(TALK[0]["content"] in said for name, said in texts(store).items() if ASIDE in name):
            late.append(alice.fork(f"{ASIDE}3").name)
        return real(work)

    def interrupted(_: object) -> None:
        raise StoreInterruptedError("the server ended it")

    monkeypatch.setattr(store.database, "erasing", again)
    store.delete("alice")
    assert late and [name for name, said in texts(store).items() if TALK[0]["content"] in said] == ["copy"]


def test_messages_that_only_others_keep_can_be_forgotten(store: MemoryStore, alice: Session) -> None:
    """So a call can be made again that failed for what was made meanwhile."""
    alice.add(MORE, replacing=1)
    assert alice.forget([1]).messages == 1
    assert [name for name, said in texts(store).items() if TALK[0]["content"] in said] == ["copy"]
    with pytest.raises(SessionNotFoundError):
        alice.forget([1])


def test_a_session_can_be_deleted_alone(store: MemoryStore, alice: Session) -> None:
    store.delete(f"{ASIDE}1", aside=False)
    assert texts(store)[f"{ASIDE}2"] == [*(message["content"] for message in TALK), MORE["content"]]


def test_nothing_is_forgotten_if_a_message_is_not_there(store: MemoryStore, alice: Session) -> None:
    before = texts(store)
    with pytest.raises(SessionNotFoundError):
        store.session("alice").forget([1, 999])
    assert texts(store) == before
