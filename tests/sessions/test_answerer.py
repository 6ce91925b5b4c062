"""One model reads and remembers, another one answers from notes: with its own template, tokens and budgets."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llama_index.llms.hmt import HMTLLM
from stored import FAST, memory_of, tokens_of, user
from tiny import NO_SYSTEM, byte_tokenizer, tiny_model
from told import READER, TALK

from hmt_memory import Assistant, HMTModel, MemoryStore, Session, ViewConfig
from hmt_memory.assistant import ModelSettings
from hmt_memory.errors import BudgetError, InputError
from hmt_memory.retrieval.notes import HEADING
from hmt_memory.sessions.answer import Wanted
from hmt_memory.sessions.answering import Answerer
from langchain_hmt import HMTChatModel

ANSWERER = tiny_model("qwen2", tokenizer=byte_tokenizer(NO_SYSTEM))
VIEW = ViewConfig(recent_tokens=40, note_tokens=120, pinned_tokens=30)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with MemoryStore(tmp_path / "store") as store:
        opened = store.session("alice", READER)
        opened.add([*TALK, {"role": "assistant", "content": "All right."}])
        yield opened


def shown(answer: Any, model: HMTModel = ANSWERER) -> str:
    return model.backbone.decode(answer.finish().view_ids)


def test_the_answerer_sees_recent_turns_and_notes_in_its_own_template(session: Session) -> None:
    reply = session.reply(user("Which secret word?"), answerer=ANSWERER, view=VIEW, **FAST)
    text = shown(reply)
    assert HEADING in text and "user: The secret word is zanzibar.\n\nWhich secret word?" in text
    assert text.startswith("user\n") and "Default." not in text, "its template has no system part"
    assert [one.text for one in reply.recalled] == ["The secret word is zanzibar."]
    session.forget(reply.message_ids)
    roomy = ViewConfig(recent_tokens=180, note_tokens=20, pinned_tokens=30)
    wide = session.reply(user("Which secret word?"), answerer=ANSWERER, view=roomy, **FAST)
    assert HEADING not in shown(wide) and "zanzibar" in shown(wide), "what is visible is not noted"


def test_what_it_sees_begins_at_the_same_turn_for_some_turns() -> None:
    """Or else nothing that was kept of the view before could be used."""
    answerer = Answerer(ANSWERER, Wanted(None, {}), ViewConfig(recent_tokens=200, note_tokens=10, pinned_tokens=10))
    messages = [{"role": ("user", "assistant")[number % 2], "content": f"Number {number}."} for number in range(81)]
    places = [10 * number for number in range(81)]
    begins = []
    for count in range(1, 82, 2):
        batch = answerer.shown(messages[:count], places[:count]).batch
        begins.append(count - len(batch.messages))
        assert len(batch.ids) <= 200 and batch.messages[0]["role"] == "user"
        assert not begins[-1] or len(batch.ids) >= 60
    moves = sum(one != other for one, other in itertools.pairwise(begins))
    assert begins == sorted(begins) and 5 < moves < 20, begins


def test_what_it_answers_is_stored_and_read_by_the_reader(session: Session) -> None:
    reply = session.reply(user("Which secret word?"), answerer=ANSWERER, view=VIEW, **FAST).finish()
    assert [message.content for message in session.messages()[-2:]] == ["Which secret word?", reply.text]
    with MemoryStore(Path(session._store.folder).parent / "other") as store:
        fresh = store.session("alice", READER)
        fresh.add([message.to_dict() for message in session.messages()])
        session.recall("zanzibar")
        assert tokens_of(fresh) == tokens_of(session) and (memory_of(fresh) == memory_of(session)).all()
    assert session.reply(user("And?"), **FAST).finish().text, "the reader can go on"


def test_an_answerer_has_no_memory_prompt_and_reads_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = type(ANSWERER).augment
    monkeypatch.setattr(
        type(ANSWERER), "augment", lambda self, *given: read.append(self.backbone is ANSWERER.backbone) or real(self, *given)
    )
    session.reply(user("Which secret word?"), answerer=ANSWERER, view=VIEW, **FAST).finish()
    assert not any(read)


def test_bad_calls_say_what_to_do(session: Session, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="pinned_tokens=30"):
        session.reply([{"role": "system", "content": "x" * 50}, user("hi")], answerer=ANSWERER, view=VIEW, **FAST)
    with MemoryStore(tmp_path / "empty") as store, pytest.raises(InputError, match="nothing to answer"):
        store.session("bob", READER).reply(answerer=ANSWERER)


def test_an_assistant_reads_with_one_model_and_answers_with_another(tmp_path: Path) -> None:
    assistant = Assistant(ANSWERER.with_view(VIEW), reader=READER, store=tmp_path)
    conversation = [*TALK, {"role": "assistant", "content": "All right."}, user("Which secret word?")]
    for name in (None, "alice"):
        answer = assistant.reply(conversation, session=name, **FAST)
        assert "user: The secret word is zanzibar.\n\nWhich secret word?" in shown(answer)
    assistant.corpus("book").add_documents([("page", "The secret word is zanzibar. It is cold.")])
    asked = assistant.ask("Which secret word?", ["book"], **FAST)
    assert "[book/page]\nThe secret word is zanzibar." in shown(asked) and assistant.reader is READER


def test_a_model_and_its_reader_are_named_and_shared(plain: str, chatty: str, tmp_path: Path) -> None:
    settings = ModelSettings(chatty, dtype="float32", device="cpu", reader=plain)
    assistant = Assistant.shared(settings, tmp_path)
    assert assistant is Assistant.shared(settings, tmp_path) is pickle.loads(pickle.dumps(assistant))
    assert assistant is not Assistant.shared(replace(settings, reader=None), tmp_path)
    assert assistant.model is Assistant.shared(replace(settings, reader=None), tmp_path).model, "weights are loaded once"
    chat = HMTChatModel(model=chatty, reader=plain, store=str(tmp_path), dtype="float32", device="cpu", max_tokens=4)
    chat.invoke("My dog is Rex.", {"configurable": {"session_id": "alice"}})
    assert chat.assistant() is assistant and assistant.session("alice").made_by().parts["backbone"]["name"] == plain
    viewed = HMTChatModel(model=chatty, reader=plain, store=str(tmp_path), dtype="float32", device="cpu", recent_tokens=30)
    assert viewed.assistant().reader is assistant.reader and viewed.assistant().model.view.recent_tokens == 30
    other = HMTLLM(model=chatty, reader=plain, store=str(tmp_path), dtype="float32", device="cpu")
    assert other.assistant() is assistant
