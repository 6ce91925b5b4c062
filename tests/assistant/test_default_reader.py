"""The bundled model reads for models whose memory is not trained, unless they are asked to, or have read already."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.llms.hmt import HMTLLM
from stored import FAST, user
from tiny import byte_tokenizer

from hmt_memory import Assistant, HMTConfig, HMTModel
from hmt_memory.assistant import ModelSettings
from hmt_memory.engine import places
from hmt_memory.errors import ModelMismatchError, ModelNotFoundError
from hmt_memory.sessions.default_reader import default_reader
from langchain_hmt import HMTChatModel

CPU: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
ALICE: Any = {"configurable": {"session_id": "alice"}}
HELLO = [user("My dog is called Rex.")]


def length(assistant: Assistant, session: str) -> int:
    """The length of the segments of a session, by which its readers differ here."""
    made_by = assistant.store.session(session).made_by()
    assert made_by is not None
    return int(made_by.parts["config"]["segment_length"])


def answered_by_it(answer: Any) -> bool:
    """Whether an answer was written by the model with a chat template, which its readers here lack."""
    return bool(byte_tokenizer().decode(answer.view_ids).endswith("</s>\nassistant: "))


def test_an_untrained_model_answers_and_the_bundled_one_reads(bundled: str, chatty: str, tmp_path: Path) -> None:
    assistant = Assistant(chatty, store=tmp_path / "store", **CPU)
    assert not assistant.is_loaded and assistant.settings == ModelSettings(chatty, **CPU)
    reply = assistant.reply(HELLO, session="alice", **FAST).finish()
    assert length(assistant, "alice") == 48 and assistant.reader.config.segment_length == 48
    assert assistant.model.backbone.name == chatty and answered_by_it(reply)
    assert answered_by_it(assistant.reply(HELLO, **FAST).finish()), "without a session too"
    assistant.corpus("book").add_documents(["Rex is a dog."])
    assert answered_by_it(assistant.ask("Who is Rex?", ["book"], **FAST).finish())
    assert pickle.loads(pickle.dumps(assistant)).reader is assistant.reader


def test_a_name_that_leads_nowhere_is_refused_before_the_reader_is_loaded(bundled: str, tmp_path: Path) -> None:
    assistant = Assistant(str(tmp_path / "no-such-model"), store=tmp_path / "store", **CPU)
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        assistant.reply(HELLO, session="alice", **FAST)
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        assistant.reply(HELLO, **FAST)
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        assistant.ask("Who is Rex?", ["book"])
    assert not assistant._reader.is_loaded and assistant.store.sessions() == []


def test_a_model_reads_itself_if_it_is_asked_to_or_knows_how(
    bundled: str, chatty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Assistant(chatty, **CPU).reader is not Assistant(chatty, **CPU).model
    loaded = HMTModel.from_pretrained(chatty, **CPU)
    for itself in (
        Assistant(chatty, reader="same", **CPU),
        Assistant(chatty, adapter="none", **CPU),
        Assistant(chatty, config='{"segment_length": 64}', **CPU),
        Assistant(bundled, **CPU),
        Assistant(loaded),
        Assistant(loaded, reader="same"),
    ):
        assert itself.reader is itself.model
    assert default_reader("smollm2-135m-instruct") is None and default_reader(chatty) == bundled

    def missing(name: str = "") -> Path:
        raise ModelNotFoundError("not installed")

    monkeypatch.setattr(places, "bundled_file", missing)
    assert Assistant(chatty, **CPU).reader is Assistant(chatty, **CPU).model, "there is no other one"


def test_what_a_model_has_read_itself_it_goes_on_reading(bundled: str, chatty: str, tmp_path: Path) -> None:
    before = Assistant(chatty, reader="same", store=tmp_path, **CPU)
    before.reply(HELLO, session="old", **FAST).finish()
    before.corpus("old").add_documents(["Rex is a dog."])
    before.session("attached").attach("old")
    assistant = Assistant(chatty, store=tmp_path, **CPU)
    assert "Rex" in assistant.recall("dog", session="old")[0].text and assistant.recall("dog", corpora=["old"])
    for session in ("old", "attached", "new"):
        reply = assistant.reply([user("And now?")], session=session, **FAST).finish()
        assert reply.message_ids and answered_by_it(reply)
        assert (reply._own is None) == (session == "new"), "it answers from its own memory, not from notes alone"  # type: ignore[union-attr]
    assert [length(assistant, session) for session in ("old", "attached", "new")] == [256, 256, 48]
    assert assistant.ask("Who is Rex?", ["old"], **FAST).finish().text


def test_what_a_third_model_has_read_is_refused_and_the_reader_can_be_named(bundled: str, chatty: str, tmp_path: Path) -> None:
    third = str(tmp_path / "third")
    HMTModel.from_pretrained(chatty, config=HMTConfig(segment_length=64), **CPU).save_pretrained(third)
    Assistant(third, store=tmp_path, **CPU).reply(HELLO, session="alice", **FAST).finish()
    with pytest.raises(ModelMismatchError, match=r"beside another one that answers as its reader \(--reader, reader=\)"):
        Assistant(chatty, store=tmp_path, **CPU).reply(HELLO, session="alice", **FAST)
    assert Assistant(chatty, reader=third, store=tmp_path, **CPU).reply(HELLO, session="alice", **FAST).finish().text


def test_the_classes_of_frameworks_do_the_same(bundled: str, chatty: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"store": str(tmp_path), "max_tokens": 4, **CPU}
    chat = HMTChatModel(model=chatty, recent_tokens=40, **given)
    chat.invoke("My dog is called Rex.", ALICE)
    assert length(chat.assistant(), "alice") == 48 and chat.reader is None
    itself = HMTChatModel(model=chatty, reader="same", recent_tokens=40, **given)
    itself.invoke("My dog is called Rex.", {"configurable": {"session_id": "bob"}})
    assert length(chat.assistant(), "bob") == 256 and itself.assistant() is not chat.assistant()
    chat.invoke("And?", {"configurable": {"session_id": "bob"}})
    assert length(chat.assistant(), "bob") == 256
    llm = HMTLLM(model=chatty, session_id="carol", **given)
    llm.complete("My dog is called Rex.")
    assert length(llm.assistant(), "carol") == 48 and HMTLLM(model=chatty, **given).assistant() is llm.assistant()
    own = HMTLLM(model=chatty, reader="same", **given).assistant()
    assert own.reader is own.model
