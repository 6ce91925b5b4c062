"""How a session keeps an answer: or not at all, only behind the message it goes on from, and with fields that nobody reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import SMALL, byte_tokenizer, light_model, tiny_model

from hmt_memory import MemoryStore, Session
from hmt_memory.errors import SessionBusyError
from hmt_memory.sessions.answer import Keeping
from hmt_memory.sessions.answering import as_given

MODEL = light_model(tokenizer=byte_tokenizer(), config=SMALL)
HELLO = {"role": "user", "content": "My dog is called Rex."}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with MemoryStore(tmp_path / "store") as store:
        yield store


@pytest.fixture
def session(store: MemoryStore) -> Session:
    session = store.session("alice", MODEL)
    session.add([HELLO, {"role": "assistant", "content": "A fine name."}])
    return session


def test_an_answer_that_is_not_stored_is_the_same(session: Session) -> None:
    before = session.version()
    first = session.reply(HELLO, max_new_tokens=8, keeping=Keeping(stored=False)).finish()
    assert session.version() == before and first.message_ids == [] and first.finish_reason is not None
    assert session.reply(HELLO, max_new_tokens=8).finish().text == first.text and len(session.messages()) == 4


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_is_refused_behind_another_message_than_it_goes_on_from(session: Session, late: bool) -> None:
    last = session.messages()[-1].id
    if not late:
        session.add(HELLO)
    with pytest.raises(SessionBusyError, match="added to meanwhile"):
        reply = session.reply(HELLO, max_new_tokens=8, keeping=Keeping(after=last))
        next(reply)
        session.add(HELLO)
        reply.finish()
    assert len(session.messages()) == 3
    session.reply(HELLO, max_new_tokens=8, keeping=Keeping(after=session.messages()[-1].id)).finish()
    assert len(session.messages()) == 5


def test_fields_are_stored_with_an_answer_and_read_by_nobody(store: MemoryStore, session: Session, tmp_path: Path) -> None:
    session.fork("twin")
    twin = store.session("twin", MODEL)
    about = {"id": "x", "metadata": {"secret": "<s>"}}
    texts = []
    for one, keeping in ((session, Keeping(fields=lambda answer: about | {"text": answer.text})), (twin, Keeping())):
        answer = one.reply(HELLO, max_new_tokens=8, keeping=keeping).finish()
        texts.append((answer.text, one.reply(HELLO, max_new_tokens=8).finish().view_ids))
    assert texts[0] == texts[1]
    assert session.messages()[3].fields == about | {"text": texts[0][0]}
    session.export(tmp_path / "session.hmt")
    again = store.import_session(tmp_path / "session.hmt", name="again", model=MODEL)
    assert [message.to_dict() for message in again.messages()] == [message.to_dict() for message in session.messages()]
    rebuilt = session.rebuild(tiny_model("qwen2", tokenizer=byte_tokenizer(), config=SMALL))
    assert rebuilt.messages()[3].fields["metadata"] == about["metadata"]


def test_ids_and_metadata_of_messages_are_shown_to_no_model(session: Session) -> None:
    session.fork("twin")
    for name, fields in (("alice", {"id": "m1", "metadata": {"secret": "s"}}), ("twin", {})):
        session._store.session(name, MODEL).add(HELLO | fields)
    alice, twin = (session._store.session(name).stats()["tokens"] for name in ("alice", "twin"))
    assert alice == twin
    assert as_given([HELLO | {"id": "m1", "metadata": {}}]) == [HELLO]


def test_a_fork_has_metadata_of_its_own(session: Session) -> None:
    session.set_metadata({"topic": "dogs"})
    assert session.fork("twin").metadata() == {} and session.metadata() == {"topic": "dogs"}


def test_instructions_are_pinned_for_one_answer(session: Session) -> None:
    session.add({"role": "system", "content": "Be kind."})
    shown = [
        MODEL.backbone.decode(session.reply(HELLO, instructions=said, max_new_tokens=2).finish().view_ids)
        for said in ("Be brief.", None)
    ]
    assert "Be kind.\n\nBe brief." in shown[0] and "Be kind." in shown[1] and "Be brief." not in shown[1]


def test_messages_are_found_by_ids_that_rise(session: Session) -> None:
    ids = session.add([HELLO] * 20)
    session.forget(ids[3:5])
    assert [message.id for message in session.from_id(ids[3], 2)] == ids[5:7] and session.count_before(ids[3]) == 5
    assert session.from_id(ids[-1] + 1, 5) == [] and session.upcoming() == ids[-1] + 1
    assert session.held([ids[2], ids[3], 999]) == [ids[2]]


def test_sessions_are_found_by_number_and_by_not_being_used(store: MemoryStore, session: Session) -> None:
    session.fork("one").fork("two")
    session.add(HELLO)
    store.delete("one")
    assert store.named("session", session.number) == "alice"
    assert store.unused(store.now() + 1) == ["two"] and store.unused(0.0) == []
