"""The laws of stored sessions, by machine: any order of calls and crashes against a plain list of messages.

Resume, isolation, erasure, fork, exactness and truth: whatever was done to a session, it equals a fresh one that holds the
messages it should hold, in its words, its tokens, its memory, its recall and its greedy answers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import numpy as np
import postgres
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from places import fast_folder
from stored import DECODING, memory_of, tokens_of
from tiny import LONG, REMEMBERING, byte_tokenizer, light_model

from hmt_memory import MemoryStore, Session
from hmt_memory.sessions import session as session_module
from hmt_memory.store.postgres.transaction import PostgresTransaction
from hmt_memory.store.sqlite.transaction import SqliteTransaction

TOKENIZER = byte_tokenizer()
MODEL = light_model(config=replace(REMEMBERING, key_dim=4), tokenizer=TOKENIZER)  # its memory has keys by meaning, too

names = st.sampled_from(["a", "b", "c", "../d", "x'; DROP TABLE messages; --"])
texts = st.text(alphabet="abc é\U0001f600", max_size=40)
turns = st.one_of(
    st.builds(dict, role=st.sampled_from(["user", "assistant"]), content=texts),
    st.builds(dict, role=st.just("system"), content=st.text(alphabet="abc é", max_size=8)),
)


class Held(NamedTuple):
    """A message that a session should hold."""

    id: int
    batch: int  # the call that added it
    message: dict[str, str]


def fresh(held: list[Held], folder: str) -> tuple[MemoryStore, Session]:
    """A session that was only ever told what is held."""
    store = MemoryStore(folder, clock=lambda: 0.0)
    session = store.session("fresh", MODEL)
    for _, batch in groupby(held, key=lambda one: one.batch):
        session.add([one.message for one in batch])
    return store, session


class Crash(BaseException):
    """The process ends here."""


class Sessions(RuleBasedStateMachine):
    """Sessions in one store, and what they should hold."""

    transaction: ClassVar[type[Any]] = SqliteTransaction

    def new_place(self) -> str:
        """Return the place of a store that does not exist yet."""
        return f"{self.folder}/store"

    def crash(self) -> None:
        """Leave the store as a process does that ends here."""

    def remove(self) -> None:
        """Remove the store."""

    @initialize()
    def open(self) -> None:
        torch.set_num_threads(1)
        self.folder = tempfile.mkdtemp(dir=fast_folder())
        self.place = self.new_place()
        self.store = MemoryStore(self.place, clock=lambda: 0.0)
        self.held: dict[str, list[Held]] = {}
        self.batches = 0
        self.live: dict[str, Session] = {}

    def session(self, name: str) -> Session:
        self.held.setdefault(name, [])
        if name not in self.live:
            self.live[name] = self.store.session(name, MODEL)
        return self.live[name]

    def hold(self, name: str, ids: list[int], batch: list[dict[str, str]]) -> None:
        self.batches += 1
        self.held[name] += [Held(id, self.batches, message) for id, message in zip(ids, batch, strict=True)]

    @rule(name=names, batch=st.lists(turns, min_size=1, max_size=3))
    def add(self, name: str, batch: list[dict[str, str]]) -> None:
        ids = self.session(name).add(batch)
        self.hold(name, ids, batch)

    @rule(name=names, text=texts)
    def ask(self, name: str, text: str) -> None:
        question = {"role": "user", "content": text}
        reply = self.session(name).reply(question, **DECODING).finish()
        answer = {"role": "assistant", "content": reply.text}
        self.hold(name, reply.message_ids, [question, answer])

    @rule(name=names, text=texts, pieces=st.integers(0, 3))
    def ask_and_leave(self, name: str, text: str, pieces: int) -> None:
        reply = self.session(name).reply({"role": "user", "content": text}, min_new_tokens=10, **DECODING)
        for _ in range(pieces):
            next(reply)
        del reply

    @precondition(lambda self: self.held)
    @rule(data=st.data(), new=names)
    def fork(self, data: st.DataObject, new: str) -> None:
        source = data.draw(st.sampled_from(sorted(self.held)))
        if new in self.held:
            return
        upto = data.draw(st.sampled_from([None, *(one.id for one in self.held[source])]))
        self.live[new] = self.session(source).fork(new, upto=upto)
        stop = next((at + 1 for at, one in enumerate(self.held[source]) if one.id == upto), None)
        self.held[new] = self.held[source][:stop]

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, held in self.held.items() if held)))
        ids = data.draw(st.sets(st.sampled_from([one.id for one in self.held[name]]), min_size=1, max_size=3))
        self.session(name).forget(sorted(ids))
        self.held[name] = [one for one in self.held[name] if one.id not in ids]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.store.delete(name)
        del self.held[name]
        self.live.pop(name, None)

    @rule(name=names, batch=st.lists(turns, min_size=1, max_size=2), written=st.booleans())
    def crash_while_adding(self, name: str, batch: list[dict[str, str]], written: bool) -> None:
        """Before the transaction ends, or after it, before what was added is read."""
        session = self.session(name)
        next_id = max((one.id for one in self.held[name]), default=None)
        spot = (session_module.Session, "_stored_already") if written else (self.transaction, "update_collection")
        with mock.patch.object(*spot, side_effect=Crash), pytest.raises(Crash):
            session.add(batch)
        if written:
            stored = session.messages()[len(self.held[name]) :]
            assert [message.to_dict() for message in stored] == batch
            assert next_id is None or stored[0].id > next_id
            self.hold(name, [message.id for message in stored], batch)
        self.reopen(close=False)

    @rule(close=st.booleans())
    def reopen(self, close: bool) -> None:
        if close:
            self.store.close()
        else:
            self.crash()
        self.live = {}
        self.store = MemoryStore(self.place, clock=lambda: 0.0)

    @rule(name=names)
    def export_and_import(self, name: str) -> None:
        path = f"{self.folder}/export.hmt"
        self.session(name).export(path)
        self.store.delete(name)
        self.live[name] = self.store.import_session(path, model=MODEL)

    @invariant()
    def messages_are_those_held(self) -> None:
        assert self.store.sessions() == sorted(self.held)
        for name, held in self.held.items():
            found = [(message.id, message.to_dict()) for message in self.store.session(name).messages()]
            assert found == [(one.id, one.message) for one in held]

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            for name, held in sorted(self.held.items()):
                self.equals_a_fresh_one(self.session(name), held)
            assert self.store.verify() == ([], [])
            self.store.close()
        finally:
            self.remove()
            shutil.rmtree(self.folder, ignore_errors=True)

    def equals_a_fresh_one(self, session: Session, held: list[Held]) -> None:
        with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
            store, other = fresh(held, folder)
            assert tokens_of(session) == tokens_of(other)
            np.testing.assert_allclose(memory_of(session), memory_of(other), atol=2e-3)
            found, expected = session.recall("abc"), other.recall("abc")
            assert [one.text for one in found] == [one.text for one in expected]
            assert found.coverage == pytest.approx(expected.coverage, abs=1e-3)
            asked = {"role": "user", "content": "b"}
            one, two = (each.reply(asked, **DECODING).finish() for each in (session, other))
            assert one.text == two.text
            assert [passage.text for passage in one.recalled] == [passage.text for passage in two.recalled]
            store.close()


class SessionsOnAServer(Sessions):
    """The same in a schema of a PostgreSQL server."""

    transaction = PostgresTransaction
    server: ClassVar[Any]

    def new_place(self) -> str:
        return postgres.new_store(self.server)

    def crash(self) -> None:
        postgres.cut(self.place)  # the server ends the connections of a process that is gone

    def remove(self) -> None:
        postgres.drop(self.place)


@pytest.fixture(scope="module")
def laws_server(postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The server of the machine above, and a folder for its indexes."""
    SessionsOnAServer.server = postgres_server
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HMT_CACHE", str(tmp_path_factory.mktemp("caches")))
        yield


def settings_of(examples: int) -> settings:
    """Return how often a machine runs, and how long; 400 times where tests may take long."""
    return settings(
        max_examples=400 if LONG else examples,
        stateful_step_count=30 if LONG else 12,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


Sessions.TestCase.settings, SessionsOnAServer.TestCase.settings = settings_of(10), settings_of(4)
test_sessions_keep_the_laws = Sessions.TestCase
test_sessions_on_a_server_keep_the_laws = pytest.mark.usefixtures("laws_server")(SessionsOnAServer.TestCase)
