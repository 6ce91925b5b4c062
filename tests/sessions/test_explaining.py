"""Why an answer says what it says: the view is the one that the answer is conditioned on, and nothing changes by looking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stored import user
from tiny import REMEMBERING, byte_tokenizer, tiny_model

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import InputError, SessionNotFoundError

ROOMY = replace(REMEMBERING, memory_tokens=2, recalled_tokens=1, recent_tokens=64, pinned_tokens=32, replay_tokens=120)
MODEL = tiny_model(config=ROOMY, tokenizer=byte_tokenizer())
TALK = [user(f"Thing {number} is a very nice thing to have about here.") for number in range(12)]
QUESTION = user("What is thing 3?")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def session(store: MemoryStore) -> Session:
    session = store.session("alice", MODEL)
    session.add({"role": "system", "content": "Be kind."})
    session.add(TALK)
    return session


def shown_of(session: Session, *, replacing: int | None = None) -> tuple[str, int]:
    """Return what an answer to the question is conditioned on: its text, and how many positions it has."""
    reply = session.reply(QUESTION, replacing=replacing, max_new_tokens=2)
    next(reply)
    return MODEL.backbone.decode(reply.view_ids), reply.usage.view_tokens


def test_the_parts_are_the_view_that_an_answer_is_conditioned_on(session: Session) -> None:
    explained, before = session.explain(QUESTION), session.stats()
    text, tokens = shown_of(session)
    assert "".join(part.text for part in explained.parts) == text and explained.tokens == tokens
    names = [part.name for part in explained.parts]
    assert names == [name for name in ("carried", "system", "recent", "recalled", "notes", "question") if name in names]
    spoken = {part.name: part.text for part in explained.parts}
    assert "Be kind." in spoken["system"] and QUESTION["content"] in spoken["question"]
    assert session.stats() == before, "nothing is stored"


def test_passages_are_those_that_were_looked_at_and_what_is_noted_is_marked(session: Session) -> None:
    explained = session.explain(QUESTION)
    reply = session.reply(QUESTION, max_new_tokens=1).finish()
    assert {each.text for each in explained.passages if each.noted} == {each.text for each in reply.recalled}
    assert any(not each.noted for each in explained.passages)
    scores = [each.score for each in explained.passages]
    assert scores == sorted(scores, reverse=True) and all(each.source == "alice" for each in explained.passages)
    ids = {message.id for message in session.messages()}
    assert all(set(each.messages) <= ids for each in explained.passages)
    assert explained.coverage == reply.recalled.coverage


def test_weights_cover_every_segment_of_the_session(session: Session) -> None:
    explained = session.explain(QUESTION)
    assert explained.first_segment == 0 and len(explained.weights) == session.stats()["segments"] > 3
    assert sum(explained.weights) == pytest.approx(1.0, abs=1e-5)
    assert session.explain(user("Something else, please?")).weights != explained.weights


def test_a_stored_answer_is_explained_by_its_question(session: Session) -> None:
    expected = session.explain(QUESTION)
    asked, _ = session.reply(QUESTION, max_new_tokens=3).finish().message_ids
    session.add([user("And then more was said."), user("A good deal more.")])
    again = session.explain(QUESTION, replacing=asked)
    assert again.parts == expected.parts and again.passages == expected.passages
    later = session.explain(QUESTION)
    assert later.parts != expected.parts


def test_messages_that_were_added_before_are_explained_without_new_ones(session: Session) -> None:
    session.add(QUESTION)
    assert session.explain().question == QUESTION["content"]


def test_what_cannot_be_answered_cannot_be_explained(store: MemoryStore, session: Session) -> None:
    with pytest.raises(InputError, match="nothing to answer"):
        store.session("empty", MODEL).explain()
    with pytest.raises(SessionNotFoundError):
        session.explain(QUESTION, replacing=10_000)
    with pytest.raises(InputError, match="opened without a model"):
        store.session("alice").explain(QUESTION)


def test_looking_forgets_nothing_and_reads_what_was_not_read(session: Session) -> None:
    session.add([user(f"One more thing, number {number}.") for number in range(4)])
    kept = session.messages()
    with session._database.writing() as db:
        row = session._own_row(db)
        row.settings["retention"] = {"messages": 1, "seconds": None}
        db.update_collection(row)
    assert session.explain(QUESTION).parts and session.messages() == kept
