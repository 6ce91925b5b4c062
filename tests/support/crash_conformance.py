"""What a store in any database has to survive: a process that ends at any transaction. `RecordStoreConformance` inherits it.

A process ends where a transaction begins, or where all of it is written and nothing is made to last yet. Rows are written
inside `Backend.writing` and nowhere else; a database for which that is not so has no such points, and fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import crash_worker
import pytest
from stored import bytes_in, user

from hmt_memory import MemoryStore
from hmt_memory.store import rewriting, sweeping
from hmt_memory.store.backend import Backend, Capability
from hmt_memory.store.transaction import Transaction

MODEL = crash_worker.MODEL
Shown = dict[str, list[str]]  # the texts of each session and corpus


class Crash(BaseException):
    """The process ends here."""


def crashing(backend: Backend, work: Callable[[], object], point: int) -> bool:
    """Work until the process ends at the point of that number; return whether there was no such point."""
    plain, points = type(backend).writing, itertools.count()

    def reach() -> None:
        if next(points) == point:
            raise Crash

    @contextmanager
    def writing(database: Backend) -> Iterator[Transaction]:
        reach()
        with plain(database) as db:
            yield db
            reach()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backend), "writing", writing)
        try:
            work()
        except Crash:
            return False
    return True


def tell(store: MemoryStore, name: str) -> None:
    """Make a session of eight messages and a corpus of two documents."""
    store.session(name, MODEL).add([user(f"{name} said {turn}") for turn in range(8)])
    store.corpus(name, MODEL).add_documents([("one", f"{name} wrote this"), ("two", "other things")])


def show(store: MemoryStore, name: str) -> Shown:
    """What the record has under names that begin so, without the name."""
    shown = {session: [message.content for message in store.session(session).messages()] for session in store.sessions()}
    shown |= {
        f"{corpus} papers": [document.text for document in store.corpus(corpus).documents()] for corpus in store.corpora()
    }
    mine = {title: texts for title, texts in shown.items() if title.startswith(name)}
    return {title.removeprefix(name): [text.removeprefix(name) for text in texts] for title, texts in mine.items()}


# What is done; each takes the store, the name of the session and of the corpus, and a folder.


def forget(store: MemoryStore, name: str, _: Path) -> None:
    session = store.session(name)
    session.forget([message.id for message in session.messages()[2:7:3]])


def edit(store: MemoryStore, name: str, _: Path) -> None:
    session = store.session(name, MODEL)
    session.add(user("something else"), replacing=session.messages()[5].id)


def limit(store: MemoryStore, name: str, _: Path) -> None:
    store.session(name).set_retention(messages=3)


def delete(store: MemoryStore, name: str, _: Path) -> None:
    store.delete(name)


def replace(store: MemoryStore, name: str, _: Path) -> None:
    store.corpus(name, MODEL).add_documents([("one", "a new text")], replace_named=True)


def fork(store: MemoryStore, name: str, _: Path) -> None:
    store.session(name).fork(f"{name} again")


def bring(store: MemoryStore, name: str, folder: Path) -> None:
    store.session(name).export(folder / name)
    store.import_session(folder / name, name=f"{name} again", model=MODEL)


ERASING: list[Callable[..., None]] = [forget, edit, limit, delete, replace]


class CrashConformance:
    """Inherit and give `backend` and `place`."""

    def place(self, backend: Backend) -> Path | str:
        """Where `MemoryStore` finds what `backend` holds."""
        raise NotImplementedError

    @pytest.mark.parametrize("work", [*(pytest.param(work, marks=pytest.mark.slow) for work in ERASING), fork, bring])
    def test_a_crash_at_any_transaction_leaves_a_whole_store(
        self, backend: Backend, work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At each in turn: the record is as before or as after, and the next opening ends what was being erased."""
        monkeypatch.setattr(rewriting, "_TOGETHER", 2)  # messages that move in one transaction
        monkeypatch.setattr(sweeping, "_ROWS_PER_STEP", 8)
        place, states = self.place(backend), []
        with MemoryStore(place) as store:
            tell(store, "twin")
            before = show(store, "twin")
            work(store, "twin", tmp_path)
            after = show(store, "twin")
        with ExitStack() as left:
            for point in range(99):
                name = f"at {point}:"
                store = left.enter_context(MemoryStore(place))  # a process that ends closes nothing
                tell(store, name)
                finished = crashing(backend, partial(work, store, name, tmp_path), point)
                with MemoryStore(place) as again:
                    states.append(show(again, name))
                    with again.database.reading() as db:
                        assert not db.erasures() and not db.drafted()
                if states[-1] == after and work in ERASING and Capability.ERASES_BYTES in backend.capabilities:
                    kept = {text for texts in states[-1].values() for text in texts}
                    gone = {text for texts in before.values() for text in texts} - kept
                    assert not bytes_in(Path(place), *(f"{name}{text}".encode() for text in gone))
                if finished:
                    break
        with MemoryStore(place) as store:
            assert store.verify().ok  # with all that every crash has left
        since = states.index(after)
        assert finished and since > 1 and states == [before] * since + [after] * (len(states) - since)
