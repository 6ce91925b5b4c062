"""What a session refuses, what it takes all the same, and what it says of both."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conversing import MODEL, TOKENIZER
from stored import FAST, memory_of, tokens_of, user
from tiny import LONG, NO_SYSTEM, REMEMBERING, byte_tokenizer, light_model

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import (
    InputError,
    ModelMismatchError,
    SessionNotFoundError,
)


@pytest.mark.parametrize(
    "bad",
    [
        "hello",
        ["hello"],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": None}],
        [{"role": 3, "content": "x"}],
        [user("lone \ud800 surrogate")],
        [user("ok"), {"role": "user", "content": "x", "when": object()}],
        [{"role": "system", "content": None, "tool_calls": []}],
    ],
)
def test_malformed_messages_are_refused_and_nothing_is_stored(session: Session, bad: Any) -> None:
    with pytest.raises(InputError):
        session.add(bad)
    assert session.messages() == []


def test_any_text_is_kept_as_it_is(store: MemoryStore, session: Session) -> None:
    planes = "".join(chr(plane * 0x10000 + 0x41) for plane in range(17))
    texts = [
        "",
        "nul \0 inside",
        planes,
        "\u2028\u2029\r\n\t",
        "'; DROP TABLE messages; --",
        "e\u0301\u200d",
        "\ufeff\ufffd",
        "</s>" * 9,
    ]
    for text in texts:
        session.add(user(text))
    session.export(store.folder / "export")
    again = store.import_session(store.folder / "export", name="again", model=MODEL)
    for one in (session, again):
        assert [message.content for message in one.messages()] == texts


def test_a_very_long_message(store: MemoryStore) -> None:
    text = "".join(chr(97 + at % 26) for at in range(100_000 if LONG else 20_000))
    sizes = replace(REMEMBERING, segment_length=80, pinned_tokens=60, replay_tokens=80)
    session = store.session("alice", light_model(config=sizes, tokenizer=TOKENIZER))
    session.add(user(text))
    assert session.messages()[0].content == text and session.stats()["segments"] == session.stats()["tokens"] // 80
    assert session.reply(user("and?"), **FAST).finish().message_ids == [2, 3]


@pytest.mark.parametrize("name", ["", " ", "x" * 201, "two\nlines", "nul\0", "\x1b[31m", "\ud800", 7])
def test_impossible_names_are_refused(store: MemoryStore, name: Any) -> None:
    with pytest.raises(InputError, match="cannot be a name"):
        store.session(name, MODEL)
    assert store.sessions() == []


def test_names_are_only_names(store: MemoryStore) -> None:
    names = ["../../etc/passwd", "/", ".", "'; DROP TABLE messages; --", "CON", "naïve \U0001f600", "a" * 200]
    for name in names:
        store.session(name, MODEL).add(user(name))
    assert store.sessions() == sorted(names)
    assert all(store.session(name).messages()[0].content == name for name in names)
    assert {path.name for path in store.folder.iterdir()} <= {
        *("memory.db", "memory.db-wal", "memory.db-shm", "locks", "indexes", "reserve"),
    }


def test_a_memory_that_is_not_finite_is_never_stored(store: MemoryStore) -> None:
    model = light_model(config=REMEMBERING, tokenizer=TOKENIZER)
    session = store.session("alice", model)
    with torch.no_grad():
        model.initial_memory.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        session.add(user("word " * 20))
    assert session.messages() == []


def test_a_memory_of_another_model_is_refused_by_name_and_can_be_rebuilt(store: MemoryStore, session: Session) -> None:
    session.add([user("hello " * 20), {"role": "assistant", "content": "yes"}])
    other = light_model(config=REMEMBERING, tokenizer=TOKENIZER, seed=1)
    other.backbone.name, MODEL.backbone.name = "other-model", "first-model"
    with pytest.raises(ModelMismatchError, match=r"made by .*, not by other-model .*rebuild alice --model other-model$"):
        store.session("alice", other)
    fork = session.fork("fork")
    rebuilt = store.session("alice").rebuild(other)
    assert tokens_of(rebuilt) == tokens_of(fork) and [one.content for one in rebuilt.messages()] == ["hello " * 20, "yes"]
    with pytest.raises(ModelMismatchError):
        session.add(user("with the old model"))
    assert store.session("alice", other).recall("hello") and fork.recall("hello")
    assert not np.allclose(memory_of(rebuilt), memory_of(fork)) and store.verify() == ([], [])


def test_rebuilding_for_another_tokenizer_reads_the_text_anew(store: MemoryStore, session: Session) -> None:
    session.add([user("hello there " * 5), {"role": "assistant", "content": "</s>"}])
    other = light_model(config=REMEMBERING, tokenizer=byte_tokenizer(NO_SYSTEM))
    rebuilt = session.rebuild(other)
    assert tokens_of(rebuilt)[:3] != tokens_of(store.session("new", MODEL))
    assert TOKENIZER.decode(tokens_of(rebuilt)).startswith("<t>user\nhello there")
    assert [message.content for message in rebuilt.messages()] == ["hello there " * 5, "</s>"]


def test_without_a_model_a_session_can_be_looked_at_only(store: MemoryStore, session: Session) -> None:
    ids = session.add([user("one"), user("two " * 20)])
    bare = store.session("alice")
    assert len(bare.messages()) == 2 and bare.stats()["messages"] == 2 and bare.messages(-1)[0].id == ids[1]
    bare.fork("fork").forget(ids[:1])
    assert [message.content for message in store.session("fork").messages()] == ["two " * 20]
    for call in (lambda: bare.add(user("x")), lambda: bare.reply(), lambda: bare.recall("x")):
        with pytest.raises(InputError, match="without a model"):
            call()
    with pytest.raises(SessionNotFoundError, match=r"no session 'bob'.*'alice', 'fork'"):
        store.session("bob")


def test_a_deleted_session_and_a_closed_store_say_so(store: MemoryStore, session: Session) -> None:
    session.add(user("hello"))
    store.delete("alice")
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        session.messages()
    with pytest.raises(SessionNotFoundError, match="was deleted"):
        session.add(user("x"))
    store.session("alice", MODEL).add(user("anew"))
    store.rename("alice", "bob")
    assert store.sessions() == ["bob"]
    store.close()
    with pytest.raises(OSError, match="store is closed"):
        store.sessions()


def test_deleting_shrinks_the_file(store: MemoryStore, session: Session) -> None:
    session.add(user("word " * 1500))
    other = store.session("other", MODEL)
    other.add(user("hello"))
    before = (store.folder / "memory.db").stat().st_size + (store.folder / "memory.db-wal").stat().st_size
    store.delete("alice")
    assert (store.folder / "memory.db").stat().st_size < before / 3 and other.messages()


def test_the_log_is_silent_in_ordinary_use(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="hmt_memory"):
        session.add(user("word " * 50))
        session.forget([1])
        session.recall("x")
    assert not caplog.records
