"""Answers of a session: when they are stored, what they replace, and calls of functions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conversing import MODEL, TOKENIZER
from stored import FAST, memory_of, tokens_of, user
from tiny import PlainText

from hmt_memory import MemoryStore, Session
from hmt_memory.engine import generate
from hmt_memory.errors import (
    InputError,
    SessionBusyError,
    SessionNotFoundError,
)

# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_stored_before_its_last_piece_comes(session: Session) -> None:
    session.add(user("hello"))
    for piece in session.reply(max_new_tokens=6, logits_processors=[PlainText(TOKENIZER)]):
        last = piece
        stored = session.messages()[1:]
    assert stored and stored[0].content.endswith(last)


def test_an_answer_to_a_rewritten_conversation_is_not_stored(session: Session) -> None:
    ids = session.add([user("secret"), user("hello")])
    reply = session.reply(**FAST)
    next(reply)
    session.forget(ids[:1])
    with pytest.raises(SessionBusyError, match="rewritten while"):
        reply.finish()
    assert [message.content for message in session.messages()] == ["hello"]


def test_messages_that_came_meanwhile_are_kept(session: Session) -> None:
    """The answer follows them, and what was read for it without them is not taken for the memory of what is stored."""
    session.add(user("hello you"))
    assert len(tokens_of(session)) == 17
    reply = session.reply(max_new_tokens=40, min_new_tokens=40)
    next(reply)
    session.add(user(""))
    assert session.stats()["segments"] == 1
    reply.finish()
    assert [message.role for message in session.messages()] == ["user", "user", "assistant"]
    found = memory_of(session)
    np.testing.assert_allclose(found, memory_of(session.rebuild(MODEL)), atol=2e-3)
    assert len(found) // 32 == len(tokens_of(session)) // 16


def test_nothing_to_answer(session: Session) -> None:
    with pytest.raises(InputError, match="nothing to answer"):
        session.reply()
    with pytest.raises(InputError, match="nothing to answer"):
        session.reply({"role": "system", "content": "Be kind."})
    assert session.recall("anything") == [] and session.messages() == []


# --- another try, tools and forms ---------------------------------------------------------------------------------------


def test_an_answer_that_replaces_equals_one_that_was_first(store: MemoryStore) -> None:
    """Edit and another try: afterwards the session is one that never saw what was replaced."""
    edited, plain = store.session("edited", MODEL), store.session("plain", MODEL)
    early = [user("a first long message, before anything is edited")]
    for session in (edited, plain):
        session.reply(early, **FAST).finish()
    gone = edited.reply(user("a wrong question that fills a segment or two"), **FAST).finish().message_ids
    edited.reply(user("and more"), **FAST).finish()
    answer = edited.reply(user("the right one"), replacing=gone[0], **FAST).finish()
    expected = plain.reply(user("the right one"), **FAST).finish()
    assert answer.text == expected.text
    assert [one.content for one in edited.messages()] == [one.content for one in plain.messages()]
    assert np.array_equal(memory_of(edited), memory_of(plain))
    raw = b"".join(path.read_bytes() for path in store.folder.iterdir() if path.is_file())
    assert b"a wrong question" not in raw
    again = store.session("edited", MODEL)
    assert [one.content for one in again.messages()] == [one.content for one in plain.messages()]


def test_the_first_message_can_be_replaced_and_one_that_is_not_there_cannot(session: Session) -> None:
    first = session.reply(user("first"), **FAST).finish().message_ids
    session.reply(user("other"), replacing=first[0], **FAST).finish()
    assert [one.content for one in session.messages()][:1] == ["other"] and len(session.messages()) == 2
    with pytest.raises(SessionNotFoundError, match="no message 999"):
        session.reply(user("x"), replacing=999)


def test_what_is_replaced_is_wiped_before_the_last_piece(session: Session, store: MemoryStore) -> None:
    ids = session.reply(user("a secret of mine"), **FAST).finish().message_ids
    reply = session.reply(user("second"), replacing=ids[0], **FAST)
    for _ in reply:
        if reply.finish_reason:
            break
    raw = b"".join(path.read_bytes() for path in store.folder.iterdir() if path.is_file())
    assert b"a secret of mine" not in raw


def test_an_answer_that_failed_is_over(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = session.reply(user("hello"), **FAST)
    monkeypatch.setattr(generate, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reply.finish()
    assert list(reply) == [] and session.messages() == []


def test_an_abandoned_replacement_replaces_nothing(session: Session) -> None:
    ids = session.reply(user("first"), **FAST).finish().message_ids
    before = session.messages()
    reply = session.reply(user("second"), replacing=ids[0], **FAST)
    next(reply)
    del reply
    assert session.messages() == before


def test_what_was_said_meanwhile_is_not_replaced(session: Session, store: MemoryStore) -> None:
    ids = session.reply(user("first"), **FAST).finish().message_ids
    reply = session.reply(user("second"), replacing=ids[0], **FAST)
    next(reply)
    store.session("alice", MODEL).add(user("meanwhile"))
    with pytest.raises(SessionBusyError, match="nothing was replaced"):
        reply.finish()
    assert [one.content for one in session.messages()][::2] == ["first", "meanwhile"]


def test_a_call_is_stored_as_a_call_and_its_result_goes_on(store: MemoryStore) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    model = MODEL.with_config(pinned_tokens=230, replay_tokens=0, recent_tokens=0)
    session = store.session("alice", model)
    reply = session.reply(user("look it up"), tools=[tool], tool_choice="required", max_new_tokens=80).finish()
    assert reply.text == "" and reply.finish_reason == "tool_calls"
    (call,) = reply.tool_calls
    assert call.name == "look_up" and call.arguments == {}
    stored = session.messages()[-1].to_dict()
    assert stored["tool_calls"] == [call.to_dict()] and stored["content"] == ""
    result = {"role": "tool", "tool_call_id": call.id, "content": "found it"}
    session.reply(result, **FAST).finish()
    text = model.backbone.decode(tokens_of(session))
    assert "look_up" in text and "<tool_response>\nfound it\n</tool_response>" in text


def test_an_answer_can_be_asked_for_as_json(session: Session) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    reply = session.reply(user("how many?"), schema=schema, max_new_tokens=60).finish()
    assert isinstance(json.loads(reply.text)["n"], int) and session.messages()[-1].content == reply.text
