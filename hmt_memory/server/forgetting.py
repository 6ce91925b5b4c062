"""Erasing for good: also what answers that are listed nowhere have taken over from a session. Knows sessions; no route."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import SessionNotFoundError
from ..sessions.names import is_aside
from ..sessions.stored_session import Forgotten, StoredSession

if TYPE_CHECKING:
    from ..sessions.memory_store import MemoryStore


def forget(store: MemoryStore, session: StoredSession, ids: Sequence[int]) -> Forgotten:
    """Erase messages of a session, and of the sessions kept for answers that go on from it.

    Args:
        store: holds them.
        session: opened with a model, it is read again at once.
        ids: of the messages.

    Returns:
        How many there were, and the sessions that share one and still keep it.
    """
    forgotten = session.forget(ids)
    _forget_aside(store, session, ids)
    return Forgotten(forgotten.messages, tuple(name for name in forgotten.also_in if not is_aside(name)))


def delete(store: MemoryStore, name: str) -> None:
    """Erase a session, and what sessions kept for answers have taken over from it. Other forks keep what they share.

    Args:
        store: holds them.
        name: of the session, in the store.
    """
    session = store.session(name)
    ids = [message.id for message in session.messages()]
    store.delete(name)
    _forget_aside(store, session, ids)


def _forget_aside(store: MemoryStore, session: StoredSession, ids: Sequence[int]) -> None:
    for name, below in store.forks(session.number):
        if is_aside(name):
            with suppress(SessionNotFoundError):  # it was deleted meanwhile
                fork = store.session(name)
                fork.forget(fork.held(number for number in ids if number < below))
