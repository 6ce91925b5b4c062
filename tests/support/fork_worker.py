"""What runs in processes that fork while a store is open. Started by a fork server that has imported `crash_worker`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from crash_worker import MODEL, Journal

from hmt_memory import MemoryStore
from hmt_memory.errors import StoreError

FORKS = 5


def user(text: str) -> dict[str, str]:
    """A message of a user."""
    return {"role": "user", "content": text}


def forked(work: Callable[[], Any], *, seconds: int = 30) -> int:
    """Do something in a forked process, which has so many seconds; return its id."""
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int) -> int:
    """Wait for a forked process; return its status."""
    return os.waitpid(child, 0)[1]


def close_before_the_fork_writes(folder: str, journal_path: str) -> None:
    """The store is closed where it was opened, and then written to in the fork."""
    journal, store = Journal(journal_path), MemoryStore(folder)
    session = store.session("alice", MODEL)
    session.add(user("before"))
    (read, write), (told, tell) = os.pipe(), os.pipe()

    def work() -> None:
        os.read(read, 1)
        session.add(user("said in the fork"))
        os.write(tell, b"x")
        os.read(read, 1)
        session.add(user("and again"))

    child = forked(work)
    store.close()
    os.write(write, b"x")
    os.read(told, 1)
    with MemoryStore(folder) as again:
        again.session("alice", MODEL).add(user("said beside it"))
        os.write(write, b"x")
        journal(ended(child))
        journal([message.content for message in again.session("alice").messages()], again.verify().problems)


def fork_beside_threads(folder: str, journal_path: str) -> None:
    """Threads add, recall and erase without pause; so does every fork."""
    journal, store, stop = Journal(journal_path), MemoryStore(folder, timeout=60), threading.Event()
    failed: list[str] = []

    def work(who: str) -> None:
        try:
            turn = 0
            while not stop.is_set():
                take_a_turn(store, who, turn)
                turn += 1
        except BaseException as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=work, args=(f"thread {number}",)) for number in range(3)]
    take_a_turn(store, "before", 0)  # imports what is imported on first use: Python's own locks do not survive a fork
    for thread in threads:
        thread.start()
    for number in range(FORKS):
        child = forked(lambda number=number: [take_a_turn(store, f"fork {number}", turn) for turn in range(2)])
        journal(ended(child))
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    journal(failed, store.verify().problems, sorted(store.sessions()))
    store.close()


def take_a_turn(store: MemoryStore, who: str, turn: int) -> None:
    """Say something kept and something forgotten, where others do and alone."""
    for name in ("shared", who):
        session = store.session(name, MODEL)
        session.add(user(f"{who} keeps {turn} " + "word " * 12))
        session.forget(session.add(user(f"{who} forgets {turn}")))
        if name == who:
            session.recall("word")  # of the shared one it may be refused: somebody rewrites it
        if f"{who} keeps {turn} " not in "".join(message.content for message in session.messages()):
            raise AssertionError("what was just said is not there")


def fork_inside_a_view(folder: str, journal_path: str) -> None:
    """Fork while this thread itself reads: the fork is told that it cannot use the store."""
    journal, store = Journal(journal_path), MemoryStore(folder)
    session = store.session("alice", MODEL)

    def work() -> None:
        for call in (store.sessions, lambda: session.add(user("hello")), lambda: MemoryStore(folder)):
            try:
                call()
            except StoreError as error:
                journal(str(error))

    with store.database.reading():
        child = forked(work)
    journal(ended(child))
    session.add(user("here it goes on"))
    store.close()


def fork_with_the_mutex_held(folder: str, journal_path: str) -> None:
    """A mutex that another thread held at the moment of the fork is never released there."""
    journal, store = Journal(journal_path), MemoryStore(folder)
    with store._mutex.held():
        child = forked(lambda: store.reading_mutex(1), seconds=10)
    journal(ended(child))
    store.close()
