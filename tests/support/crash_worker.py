"""What runs in processes that tests kill, starve or set against each other. Started by a fork server that has imported this."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import threading
import time
from typing import Any

import torch
from tiny import REMEMBERING, PlainText, byte_tokenizer, light_model

from hmt_memory import HMTError, MemoryStore

TOKENIZER = byte_tokenizer()


torch.set_num_threads(1)  # before the fork: a pool of threads would not survive it
MODEL = light_model(config=REMEMBERING, tokenizer=TOKENIZER)


class Journal:
    """Lines of JSON that are in the file when the call returns, whatever happens to the process."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, *entry: Any) -> None:
        os.write(self._handle, (json.dumps(entry) + "\n").encode())


def talk(folder: str, journal_path: str, seed: int) -> None:
    """Add, ask and forget until somebody kills the process; every call is announced, and acknowledged with its ids."""
    journal, chance = Journal(journal_path), random.Random(seed)
    store = MemoryStore(folder)
    session = store.session("talk", MODEL)
    known = [message.id for message in session.messages()]
    journal("ready", None, None)
    for turn in range(10_000):
        kind = chance.choice(["add", "add", "long", "ask", "forget"])
        text = f"message {seed}-{turn} " + "word " * (chance.randrange(40, 90) if kind == "long" else 1)
        if kind == "forget" and known:
            gone = chance.choice(known)
            journal("try", "forget", gone)
            session.forget([gone])
            known.remove(gone)
            journal("done", "forget", gone)
            continue
        question = {"role": "user", "content": text}
        journal("try", "ask" if kind == "ask" else "add", text)
        if kind == "ask":
            ids = session.reply(question, max_new_tokens=20, logits_processors=[PlainText(TOKENIZER)]).finish().message_ids
        else:
            ids = session.add(question)
        known += ids
        journal("done", "add", ids)


def fill(folder: str, journal_path: str, room: int) -> None:
    """Add until the disk is full: no file of this process may grow beyond what the database has now and `room` bytes."""
    journal = Journal(journal_path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = os.path.getsize(os.path.join(folder, "memory.db"))
    store = MemoryStore(folder)
    session = store.session("talk", MODEL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
    for turn in range(10_000):
        text = f"message {turn} " + "word " * 50
        try:
            ids = session.add({"role": "user", "content": text})
        except HMTError as error:
            journal("full", type(error).__name__, str(error))
            break
        journal("done", ids, text)
    journal("left", [[one.id, one.content] for one in session.messages()], store.verify().problems)
    store.close()  # indexes cannot be written either: that must not raise


def hold(folder: str, lock: str, seconds: float, journal_path: str) -> None:
    """Hold a lock of the store, or, called "store", that of all writers."""
    database = MemoryStore(folder).database
    with database.exclusive() if lock == "store" else database.lock(lock):
        Journal(journal_path)("held", lock)
        time.sleep(seconds)


def write(folder: str, who: str, count: int, journal_path: str) -> None:
    """Add `count` messages to the session that others write too."""
    session = MemoryStore(folder, timeout=30).session("shared", MODEL)
    journal = Journal(journal_path)
    for turn in range(count):
        journal("done", who, session.add({"role": "user", "content": f"{who} {turn} and some more words"}))


def look(folder: str, seconds: float, journal_path: str) -> None:
    """Read the session that others write: it must always be a whole conversation."""
    session, journal = MemoryStore(folder, timeout=30).session("shared"), Journal(journal_path)
    longest, stop = 0, time.monotonic() + seconds
    while time.monotonic() < stop:
        messages = session.messages()
        ids = [message.id for message in messages]
        if ids != list(range(1, len(ids) + 1)) or len(ids) < longest:
            journal("torn", ids)
        longest = len(ids)
    journal("looked", longest)


def fork_while_searching(folder: str, journal_path: str) -> None:
    """Fork again and again while threads search and add; each child searches, too, and says whether it came to an end."""
    store, journal = MemoryStore(folder), Journal(journal_path)
    session, stop = store.session("shared", MODEL), threading.Event()
    session.add({"role": "user", "content": "word " * 200})

    def work() -> None:
        while not stop.is_set():
            session.recall("word")
            session.add({"role": "user", "content": "word"})

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        child = os.fork()
        if not child:
            signal.alarm(20)
            found = store.session("shared", MODEL).recall("word")
            os._exit(0 if found else 1)
        journal("done", os.waitpid(child, 0)[1])
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    store.close()


def fork_and_write(folder: str, journal_path: str) -> None:
    """Fork with the store open; parent and child both go on writing."""
    store, journal = MemoryStore(folder), Journal(journal_path)
    session = store.session("shared", MODEL)
    session.add({"role": "user", "content": "before"})
    inherited = list(store.database._idle)
    child = os.fork()
    with store.database.reading() as db:
        reused = not child and any(db is one for one in inherited)
    for turn in range(5):
        session.add({"role": "user", "content": f"{'parent' if child else 'child'} {turn}"})
    if not child:
        journal("child", [message.content for message in session.messages()], reused)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    journal("parent", [message.content for message in session.messages()], status, store.verify().problems)
    store.close()
