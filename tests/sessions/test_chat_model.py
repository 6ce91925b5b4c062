"""Anything that answers messages answers in a session: it is given turns and notes in words, and the reader remembers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stored import FAST, user
from told import READER, TALK, Told

from hmt_memory import Decoding, MemoryStore, Session, ToolCall, ViewConfig
from hmt_memory.assistant import stateless
from hmt_memory.errors import BudgetError, InputError
from hmt_memory.retrieval.notes import HEADING, day
from hmt_memory.sessions.chat_model import Ending

VIEW = ViewConfig(recent_tokens=40, note_tokens=120)
CALL = ToolCall("add", {"a": 1}, "call-1")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with MemoryStore(tmp_path / "store", clock=lambda: 1_770_000_000.0) as store:
        opened = store.session("alice", READER)
        opened.add([{"role": "system", "content": "Be brief."}, *TALK, {"role": "assistant", "content": "All right."}])
        yield opened


def contents(session: Session) -> list[str]:
    return [message.content for message in session.messages()]


def test_it_is_given_the_system_prompt_recent_turns_and_notes_before_the_question(session: Session) -> None:
    told = Told()
    reply = session.reply({**user("Which secret word?"), "id": "m1"}, answerer=told, view=VIEW).finish()
    today = day(session.messages()[0].created_at)
    notes = f"{HEADING}\n[{today}]\nuser: The secret word is zanzibar.\n\n"
    assert told.given == [{"role": "system", "content": "Be brief."}, user(notes + "Which secret word?")]
    assert reply.text == "Zanzibar." == contents(session)[-1] and contents(session)[-2] == "Which secret word?"
    assert [passage.text for passage in reply.recalled] == ["The secret word is zanzibar."]
    assert told.options == {} and reply.finish_reason == "stop" and reply.view_ids == []
    session.reply(user("Which secret word?"), answerer=told).finish()
    assert [message["content"] for message in told.given][1:3] == [TALK[0]["content"], "Fine."], "what fits is shown"
    assert told.given[-1] == user("Which secret word?"), "and what is shown is not noted"
    session.reply(user("Which secret word?"), answerer=told, view=VIEW, replay=False).finish()
    assert told.given[-1] == user("Which secret word?")


def test_what_is_asked_for_is_passed_on_and_nothing_else(session: Session) -> None:
    told, tools = Told(), [{"type": "function", "function": {"name": "add"}}]
    asked = session.reply(
        user("Add."), answerer=told, tools=tools, tool_choice="add", decoding=Decoding(top_k=3), temperature=0.0, seed=None
    )
    asked.finish()
    assert told.options == {"tools": tools, "tool_choice": "add", "top_k": 3, "temperature": 0.0}
    with pytest.raises(InputError, match="top_p"):
        session.reply(user("Add."), answerer=told, top_p=7.0)


def test_calls_counts_and_reason_are_those_that_it_tells(session: Session) -> None:
    before = len(contents(session))
    reply = session.reply(user("Add."), answerer=Told("Well.", Ending("tool_calls", [CALL], 77, 5))).finish()
    assert reply.tool_calls == [CALL] and reply.finish_reason == "tool_calls" and reply.text == "Well."
    assert (reply.usage.view_tokens, reply.usage.completion_tokens) == (77, 5) and reply.usage.prompt_tokens > 0
    told = Told()
    result = {"role": "tool", "content": "2", "tool_call_id": "call-1"}
    session.reply(result, answerer=told).finish()
    assert told.given[-2]["tool_calls"] == [CALL.to_dict()] and told.given[-1] == result
    assert len(contents(session)) == before + 4
    plain = session.reply(user("And?"), answerer=told).finish()
    assert plain.usage.completion_tokens == len(READER.backbone.encode("Zanzibar.")) and plain.usage.view_tokens > 0


def test_the_answer_is_stored_before_its_last_piece_and_abandoned_nothing_is(session: Session) -> None:
    before = contents(session)
    reply = session.reply(user("Which?"), answerer=Told())
    assert next(reply) == "Zan" and next(reply) == "zibar" and contents(session) == before
    del reply
    reply = session.reply(user("Which?"), answerer=Told())
    assert [next(reply) for _ in range(3)][-1] == "." and contents(session) == [*before, "Which?", "Zanzibar."]
    assert list(reply) == [] and len(reply.message_ids) == 2


def test_an_answer_that_fails_leaves_nothing(session: Session) -> None:
    before = contents(session)
    reply = session.reply(user("Which?"), answerer=Told("Zan", "zi", RuntimeError("gone")))
    assert next(reply) == "Zan"
    with pytest.raises(RuntimeError, match="gone"):
        next(reply)
    assert list(reply) == [] and contents(session) == before and reply.finish_reason is None
    with pytest.raises(InputError, match="pieces of text and an Ending"):
        session.reply(user("Which?"), answerer=Told(7)).finish()  # type: ignore[arg-type]


def test_an_empty_answer_is_one(session: Session) -> None:
    reply = session.reply(user("Which?"), answerer=Told("", Ending("stop", [CALL]))).finish()
    assert reply.text == "" and session.messages()[-1].fields["tool_calls"] == [CALL.to_dict()]


def test_bad_calls_say_what_to_do(session: Session) -> None:
    with pytest.raises(InputError, match="yields pieces of text"):
        session.reply(user("hi"), answerer="gpt")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="pinned_tokens=3"):
        session.reply(user("hi"), answerer=Told(), view=ViewConfig(pinned_tokens=3))


def test_it_answers_from_a_corpus_and_without_a_session(session: Session) -> None:
    corpus, told = session._store.corpus("book", READER), Told()  # type: ignore[attr-defined]
    corpus.add_documents([("page", "The secret word is zanzibar. It is cold.")])
    answer = corpus.ask("Which secret word?", answerer=told, system="Be brief.").finish()
    assert told.given[0]["content"] == "Be brief." and answer.text == "Zanzibar."
    assert told.given[1]["content"] == f"{HEADING}\n[book/page]\nThe secret word is zanzibar.\n\nWhich secret word?"
    conversation = [*TALK, {"role": "assistant", "content": "All right."}, user("Which secret word?")]
    stateless.reply(READER, conversation, answerer=told, view=VIEW).finish()
    assert "user: The secret word is zanzibar.\n\nWhich secret word?" in told.given[-1]["content"] and len(told.given) == 1


def test_without_a_session_nothing_is_read_that_is_shown_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stateless, "_read", None)
    told = Told()
    stateless.reply(READER, TALK, answerer=told).finish()
    assert told.given == TALK
    with pytest.raises(TypeError):
        stateless.reply(READER, TALK, answerer=told, view=VIEW)


def test_without_a_session_a_view_holds_for_its_call_only() -> None:
    cache, wide = stateless.PrefixCache(), ViewConfig(recent_tokens=120)

    def view(given: ViewConfig | None, **kept: Any) -> list[int]:
        return stateless.reply(READER, TALK, view=given, **kept, **FAST).finish().view_ids

    assert view(None, cache=cache) == view(None) != view(wide)
    assert view(wide, cache=cache) == view(wide) and view(None, cache=cache) == view(None)
