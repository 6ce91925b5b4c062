"""Hands that do anything to one store at once, until somebody kills their process. Every call is announced and acknowledged.

Each hand has sessions that it alone writes to, and knows what they should hold; names of those that others may copy begin with
"open". Sessions called "common" and corpora called "papers" are everybody's.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from crash_worker import MODEL, TOKENIZER, Journal
from stress_ledger import Entry, Owner, Said, said_equal
from tiny import PlainText

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import (
    OutcomeUnknownError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    StoreInterruptedError,
)
from hmt_memory.sessions.corpus import Corpus
from hmt_memory.store import rewriting, sweeping
from hmt_memory.store.sqlite import database

HANDS = 4  # threads of a process
PATIENCE = 60.0  # seconds that a call may wait for others; a store that hangs is told from one that is busy by these
_DECODING: dict[str, Any] = {"max_new_tokens": 8, "logits_processors": [PlainText(TOKENIZER)]}
_MOST_OWN, _MOST_SAID, _MOST_NAMES = 4, 30, 60
_LAST_EMBEDDING = (
    "SELECT data, memory_size FROM collections c JOIN segments s ON s.stream = c.stream JOIN payloads p ON p.id = memory"
    " WHERE c.id = ? ORDER BY seq DESC LIMIT 1"
)
_GONE = (SessionNotFoundError,)  # what others' deleting may bring about
_REWRITTEN = (SessionNotFoundError, SessionBusyError)  # and their rewriting


def user(text: str) -> dict[str, str]:
    """A message of a user."""
    return {"role": "user", "content": text}


def take_short_steps() -> None:
    """Let erasures take many transactions, although there is little to erase, so that a kill falls between two of them."""
    rewriting._TOGETHER = 3
    sweeping._ROWS_PER_STEP, sweeping._BYTES_PER_STEP = 4, 1000
    database._CHECKPOINT_BYTES, database._LARGEST_LOG = 200_000, 400_000


def attack(place: str, root: str, journal_path: str, seed: str, slot: int, short_steps: bool) -> None:
    """Work with all hands until there is a file "stop" in the root, or somebody kills the process."""
    faulthandler.enable()
    torch.set_num_threads(1)  # before there are others: torch fails where several are the first to compute after a fork
    if short_steps:
        take_short_steps()
    journal, common = Journal(journal_path), {}
    logging.getLogger("hmt_memory").addHandler(_ToJournal(journal))
    store = MemoryStore(place, timeout=PATIENCE)
    hands = [
        Hand(store, Path(root), common, journal, f"{seed}-{number}", f"{slot}-{number}", number) for number in range(HANDS)
    ]
    journal("ready", 0, "", "", None, 0)
    threads = [threading.Thread(target=hand.work, args=(Path(root) / "stop",)) for hand in hands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()


def end_if_interrupted(error: BaseException | None) -> None:
    """End the process where a call was cut off by the server: as after a kill, it was made in whole or not at all."""
    while error is not None:
        if isinstance(error, StoreInterruptedError | OutcomeUnknownError):
            os.kill(os.getpid(), signal.SIGKILL)
        error = error.__cause__


class _ToJournal(logging.Handler):
    """Notes what the store warns of."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal("warned", 0, "", "", record.getMessage(), 0)


class Refused(Exception):
    """A call failed as it may."""


class Hand:
    """One thread's work: calls chosen by chance."""

    def __init__(
        self, store: MemoryStore, root: Path, common: dict[str, Session], journal: Journal, seed: str, who: str, number: int
    ) -> None:
        self.root = root
        self.store, self.main, self.common, self.journal, self.who, self.number = store, store, common, journal, who, number
        self.chance, self.owner = random.Random(seed), Owner()
        self.sessions: dict[str, Session] = {}
        self.documents: dict[str, list[tuple[int, str]]] = {}  # id and name of those this hand has added, by corpus
        self.removed: set[tuple[int, int]] = set()  # number of a corpus and id of a document
        self._take_over()

    def _take_over(self) -> None:
        """Know the sessions that this hand had before its process was killed."""
        for name in self.store.sessions():
            if name.startswith((f"own-{self.who}-", f"open-{self.who}-")):
                self.owner.held[name] = self.said(name)
                self.owner.retained |= {name} if self.session(name).stats()["retention"] else set()

    def work(self, stop: Path) -> None:
        """Make calls until told to stop."""
        kinds, weights = [getattr(self, name) for name in CALLS], list(CALLS.values())
        while not stop.exists():
            (call,) = self.chance.choices(kinds, weights)
            try:
                call()
            except Refused:
                continue
            except Exception as error:  # of what surrounds the calls
                end_if_interrupted(error)
                self.journal("raised", self.number, call.__name__, "", traceback.format_exc(), 0)
                return

    # --- what calls are made of -------------------------------------------------------------------------------------

    def call(
        self, op: str, name: str, work: Callable[[], Any], allowed: tuple[type[Exception], ...] = (), **details: Any
    ) -> Any:
        """Announce a call, make it, and say what came of it. Raises Refused where it failed."""
        self.journal("try", self.number, op, name, details, 0)
        begun = time.monotonic()
        try:
            result = work() or {}
        except Exception as error:
            end_if_interrupted(error)
            kind = "refused" if isinstance(error, allowed) and "has been" not in str(error) else "raised"
            told = f"{type(error).__name__}: {error}" if kind == "refused" else traceback.format_exc()
            self.journal(kind, self.number, op, name, told, time.monotonic() - begun)
            raise Refused from error
        self.journal("done", self.number, op, name, result, time.monotonic() - begun)
        return result

    def own(self, op: str, name: str, work: Callable[[], Any], **details: Any) -> None:
        """Make a call that changes this hand's own sessions, and now and then look whether they are as they should be."""
        result = self.call(op, name, work, **details)
        self.owner.apply(Entry("try", self.number, op, name, details), result)
        changed = details.get("new", name)
        if self.chance.random() < 0.3 and changed in self.owner.held:
            self.compare(changed)

    def compare(self, name: str) -> None:
        """Look whether one of this hand's own sessions is as it should be."""
        found, held = self.said(name), self.owner.held[name]
        if not said_equal(found, held):
            self.journal("wrong", self.number, "", name, f"{name}\n  is {found}\n  and not {held}", 0)

    def session(self, name: str) -> Session:
        """One of this hand's own sessions, opened once."""
        if name not in self.sessions:
            self.sessions[name] = self.store.session(name, MODEL)
        return self.sessions[name]

    def said(self, name: str) -> Said:
        """What is in a session."""
        return [[message.id, message.content] for message in self.session(name).messages()]

    def left(self, name: str) -> dict[str, Any]:
        """Say what a limit has left of a session."""
        if name not in self.owner.retained:
            return {}
        found = self.session(name).messages(0, 1)
        return {"left": found[0].id if found else None}

    def secret(self) -> str:
        """Something that is said once."""
        return f"~{self.chance.randbytes(6).hex()}~"

    def text(self) -> str:
        """Something to say."""
        return self.secret() + " word" * self.chance.choice([0, 1, 3, 8, 25])

    def name(self, kind: str) -> str:
        """A name for a new session of this hand."""
        return f"{kind}-{self.who}-{self.secret()}"

    def kind_of(self, name: str) -> str:
        """Whether others may copy a session: "own" or "open"."""
        return name.split("-")[0]

    def some(self, least: int = 0) -> str:
        """One of this hand's own sessions, of at least so many messages."""
        names = [name for name, held in sorted(self.owner.held.items()) if len(held) >= least]
        if not names:
            raise Refused
        return self.chance.choice(names)

    # --- this hand's own sessions -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin a session."""
        if len(self.owner.held) < _MOST_OWN:
            name = self.name(self.chance.choice(["own", "open"]))
            self.own("open", name, lambda: self.session(name) and {})

    def add(self) -> None:
        """Say one thing, or several."""
        name = self.some()
        if len(self.owner.held[name]) > _MOST_SAID:
            return self.delete(name)
        texts = [self.text() for _ in range(self.chance.choice([1, 1, 2, 9]))]
        self.own("add", name, lambda: {"ids": self.session(name).add(list(map(user, texts))), **self.left(name)}, texts=texts)

    def ask(self) -> None:
        """Ask and be answered."""
        name, text = self.some(), self.text()
        self.own("ask", name, lambda: self._answered(name, user(text)), texts=[text])

    def _answered(self, name: str, question: dict[str, str], **options: Any) -> dict[str, Any]:
        reply = self.session(name).reply(question, **options, **_DECODING).finish()
        return {"ids": reply.message_ids, "answer": reply.text, **self.left(name)}

    def leave(self) -> None:
        """Ask, and leave before the answer ends."""
        name, text = self.some(), self.text()

        def work() -> dict[str, Any]:
            reply = self.session(name).reply(user(text), min_new_tokens=4, **_DECODING)
            for _ in range(self.chance.randrange(3)):
                next(reply)
            return self.left(name)

        self.own("leave", name, work, texts=[text])

    def edit(self) -> None:
        """Say something else instead, with or without an answer."""
        name, text = self.some(1), self.text()
        replacing = self.chance.choice(self.owner.held[name][-3:])[0]

        def work() -> dict[str, Any]:
            if self.chance.random() < 0.5:
                return self._answered(name, user(text), replacing=replacing)
            return {"ids": self.session(name).add(user(text), replacing=replacing), **self.left(name)}

        self.own("edit", name, work, texts=[text], replacing=replacing)

    def forget(self) -> None:
        """Forget some of what was said."""
        name = self.some(1)
        ids = [one[0] for one in self.owner.held[name]]
        gone = sorted(self.chance.sample(ids, min(len(ids), self.chance.choice([1, 1, 2, 5]))))
        kept = self._embeddings(name)
        self.own("forget", name, lambda: self.session(name).forget(gone) and {}, ids=gone)
        self._note_erased(name, kept)

    def delete(self, name: str | None = None) -> None:
        """Delete a session."""
        name = name or self.some()
        kept = self._embeddings(name)
        self.own("delete", name, lambda: self.store.delete(name))
        self.sessions.pop(name, None)
        self._note_erased(name, kept)

    def _embeddings(self, name: str) -> str | None:
        """Return the last memory embedding of a session, now and then."""
        if self.chance.random() < 0.7:
            return None
        with self.store.database.reading() as db:
            row = db.execute(_LAST_EMBEDDING, (self.session(name)._id,)).fetchone()
        return row and row[0][: row[1]].hex()

    def _note_erased(self, name: str, embedding: str | None) -> None:
        if embedding is not None:
            self.journal("erased", self.number, "", name, embedding, 0)

    def rename(self) -> None:
        """Give a session another name; a name that is taken is refused."""
        name = self.some()
        new = self.name(self.kind_of(name))
        taken = self.some()
        try:
            self.call("taken", name, lambda: self.store.rename(name, taken), (SessionExistsError,))
        except Refused:
            self.own("rename", name, lambda: self.store.rename(name, new), new=new)
            self.sessions.pop(name, None)

    def fork(self) -> None:
        """Fork a session, now and then at a message."""
        name = self.some()
        new, held = self.name(self.kind_of(name)), self.owner.held[name]
        upto = self.chance.choice(held)[0] if held and self.chance.random() < 0.6 else None
        if len(self.owner.held) < 2 * _MOST_OWN:
            self.own("fork", name, lambda: self.session(name).fork(new, upto=upto) and {}, new=new, upto=upto)
        else:
            self.delete()

    def carry(self) -> None:
        """Export a session and import it under another name."""
        name = self.some()
        new = self.name(self.kind_of(name))
        self.own("carry", name, lambda: self._carried(name, new) and {}, new=new)

    def _carried(self, name: str, new: str) -> Session:
        path = self.root / f"export-{self.who}"
        self.store.session(name, MODEL).export(path)
        return self.store.import_session(path, name=new, model=MODEL)

    def adopt(self) -> None:
        """Fork a session that another hand writes to, or export and import it."""
        names = [name for name in self.store.sessions() if name.startswith("open-") and name not in self.owner.held]
        if not names or len(self.owner.held) > _MOST_OWN:
            return
        name, new, carried = self.chance.choice(names), self.name("open"), self.chance.random() < 0.3

        def work() -> dict[str, Any]:
            session = self._carried(name, new) if carried else self.store.session(name).fork(new)
            held = [[message.id, message.content] for message in session.messages()]
            return {"held": held, "retained": bool(session.stats()["retention"])}

        details = {"new": new, "carried": carried}
        result = self.call("adopt", name, work, _GONE, **details)
        self.owner.apply(Entry("try", self.number, "adopt", name, details), result)

    def retain(self) -> None:
        """Keep at most so many messages from now on, or all again."""
        name, count = self.some(), self.chance.choice([None, 6, 9])

        def work() -> dict[str, Any]:
            self.session(name).set_retention(messages=count)
            found = self.session(name).messages(0, 1)
            return {"left": found[0].id if found else None}

        self.own("retain", name, work, count=count)

    def recall(self) -> None:
        """Recall from a session: what comes is of what it holds."""
        name = self.some()
        self.own("recall", name, lambda: self._recalled(name))

    def _recalled(self, name: str) -> dict[str, Any]:
        found, left = self.session(name).recall("word", 9), self.left(name)
        ids, held = {message.id for one in found for message in one.messages}, self.owner.held[name]
        strange = ids - {id for id, _ in held}
        if strange or any(not one.text and one.document is not None for one in found):
            self.journal("wrong", self.number, "recall", name, f"{sorted(strange)} in {held}", 0)
        return left

    def attach(self) -> None:
        """Let a session recall from a corpus."""
        name = self.some()
        self.call("attach", name, lambda: self.session(name).attach(f"papers-{self.chance.randrange(2)}"), _GONE)

    def look(self) -> None:
        """Compare a session with what it should hold, and let a store verify everything."""
        self.compare(self.some())
        if self.chance.random() < 0.3:
            found = self.call("verify", "", lambda: {"problems": self.store.verify().problems})
            if found["problems"]:
                self.journal("wrong", self.number, "verify", "", "\n".join(found["problems"]), 0)

    # --- everybody's sessions ---------------------------------------------------------------------------------------

    def everybodys(self) -> Session:
        """A session that all write to; threads may share its object."""
        name = f"common-{self.chance.randrange(2)}"
        if self.chance.random() < 0.5 or name not in self.common:
            self.common[name] = self.store.session(name, MODEL)
        return self.common[name]

    def common_add(self) -> None:
        """Say something where others do."""
        session, texts = self._of_common(self.everybodys), [self.text() for _ in range(self.chance.choice([1, 3]))]
        work = lambda: {"ids": session.add(list(map(user, texts)))}  # noqa: E731
        self.call("common_add", session.name, work, _REWRITTEN, texts=texts, number=session._id)

    def common_ask(self) -> None:
        """Ask where others do, and let the answer replace something now and then."""
        session, text = self._of_common(self.everybodys), self.text()
        ids = self._of_common(lambda: [message.id for message in session.messages()])
        options = {"replacing": self.chance.choice(ids[-4:])} if ids and self.chance.random() < 0.3 else {}

        def work() -> dict[str, Any]:
            reply = session.reply(user(text), **options, **_DECODING).finish()
            return {"ids": reply.message_ids, "answer": reply.text}

        self.call("common_ask", session.name, work, _REWRITTEN, texts=[text], number=session._id, **options)

    def common_forget(self) -> None:
        """Forget what anybody said."""
        session = self._of_common(self.everybodys)
        ids = self._of_common(lambda: [message.id for message in session.messages()])
        if ids:
            gone = self.chance.sample(ids, min(len(ids), self.chance.choice([1, 2, 6])))
            self.call(
                "common_forget", session.name, lambda: session.forget(gone) and {}, _REWRITTEN, ids=gone, number=session._id
            )

    def common_recall(self) -> None:
        """Recall what anybody said."""
        session = self._of_common(self.everybodys)
        self.call("common_recall", session.name, lambda: session.recall("word") and {}, _REWRITTEN, number=session._id)

    def common_delete(self) -> None:
        """Delete a session that others write to."""
        name = f"common-{self.chance.randrange(2)}"
        self.call("common_delete", name, lambda: self.store.delete(name), _GONE)
        self.common.pop(name, None)

    def _of_common(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except _GONE as error:
            self.common.clear()
            raise Refused from error

    # --- corpora ----------------------------------------------------------------------------------------------------

    def papers(self) -> Corpus:
        """A corpus that all write to."""
        return self._of_common(lambda: self.store.corpus(f"papers-{self.chance.randrange(2)}", MODEL))

    def papers_add(self) -> None:
        """Add documents; some take the place of one that this hand has added before."""
        corpus = self.papers()
        mine = self.documents.setdefault(str(corpus._id), [])
        old = self.chance.sample(mine, min(len(mine), self.chance.choice([0, 1, 2])))
        bodies = [(name, self.text()) for _, name in old] or [(f"paper {self.secret()}", self.text())]
        ids, texts = [id for id, _ in old], [text for _, text in bodies]
        work = lambda: {"ids": corpus.add_documents(bodies, replace_named=bool(old))}  # noqa: E731
        details = {"texts": texts, "number": corpus._id, "ids": ids, "names": [name for name, _ in bodies]}
        result = self.call("papers_add", corpus.name, work, _GONE, **details)
        mine[:] = [one for one in mine if one not in old]
        mine += zip(result["ids"], details["names"], strict=True)
        self.removed |= {(corpus._id, id) for id in ids}

    def papers_remove(self) -> None:
        """Remove documents of this hand's."""
        corpus = self.papers()
        mine = self.documents.get(str(corpus._id), [])
        gone = [id for id, _ in self.chance.sample(mine, min(len(mine), self.chance.choice([1, 3])))]
        if gone:
            self.call("papers_remove", corpus.name, lambda: corpus.remove(gone), _GONE, ids=gone, number=corpus._id)
            mine[:] = [one for one in mine if one[0] not in gone]
            self.removed |= {(corpus._id, id) for id in gone}

    def papers_recall(self) -> None:
        """Recall from a corpus: nothing that was removed before."""
        corpus = self.papers()
        before = set(self.removed)

        def work() -> None:
            for one in corpus.recall("word", 50):
                if (corpus._id, one.document) in before or not one.text:
                    self.journal("wrong", self.number, "recall", corpus.name, f"document {one.document}: {one.text}", 0)

        self.call("papers_recall", corpus.name, work, _GONE, number=corpus._id)

    def papers_delete(self) -> None:
        """Delete a corpus that others write to."""
        name = f"papers-{self.chance.randrange(2)}"
        self.call("papers_delete", name, lambda: self.store.delete_corpus(name), _GONE)

    # --- the store --------------------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Give the room of what was erased back to the disk."""
        self.call("compact", "", lambda: {"given": self.store.compact()})

    def reopen(self) -> None:
        """Make some calls through a store of one's own that is closed afterwards."""
        if self.store is not self.main:
            return
        with self._store_of_ones_own():
            for _ in range(self.chance.randrange(1, 9)):
                (name,) = self.chance.choices(list(CALLS), list(CALLS.values()))
                try:
                    getattr(self, name)()
                except Refused:
                    continue

    @contextmanager
    def _store_of_ones_own(self) -> Iterator[None]:
        self.call("opening", "", lambda: setattr(self, "store", MemoryStore(self.main.folder, timeout=PATIENCE)))
        self.sessions, common, self.common = {}, self.common, {}
        try:
            yield
        finally:
            self.call("closing", "", self.store.close)
            self.store, self.sessions, self.common = self.main, {}, common


CALLS: dict[str, float] = {
    "open": 4,
    "add": 12,
    "ask": 4,
    "leave": 2,
    "edit": 4,
    "forget": 6,
    "delete": 2,
    "rename": 1,
    "fork": 3,
    "carry": 1,
    "adopt": 3,
    "retain": 1,
    "recall": 3,
    "attach": 1,
    "look": 2,
    "common_add": 5,
    "common_ask": 2,
    "common_forget": 3,
    "common_recall": 2,
    "common_delete": 0.3,
    "papers_add": 4,
    "papers_remove": 2,
    "papers_recall": 3,
    "papers_delete": 0.2,
    "compact": 0.3,
    "reopen": 1,
}
