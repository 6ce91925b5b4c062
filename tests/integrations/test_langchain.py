"""The LangChain classes: where a call's session is found, what is remembered and what is not, caches, histories, retrievers."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, ConfigurableFieldSpec, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from pydantic import BaseModel
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import Assistant, HMTError, HMTModel, MemoryStore
from langchain_hmt import HMTLLM, HMTChatMessageHistory, HMTChatModel, HMTRetriever
from langchain_hmt.messages import text_of, to_dict, to_dicts

MODEL = light_model(config=REMEMBERING, tokenizer=byte_tokenizer())
ALICE: Any = {"configurable": {"session_id": "alice"}}


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(MODEL, store=tmp_path / "memories")


@pytest.fixture
def chat(assistant: Assistant) -> HMTChatModel:
    return HMTChatModel(engine=assistant, max_tokens=6)


def said(assistant: Assistant, name: str) -> list[str]:
    return [one.content for one in assistant.session(name).messages() if one.role == "user"]


# --- the session matrix -------------------------------------------------------------------------------------------------

PROMPT = ChatPromptTemplate.from_messages([("human", "{text}")])
WAYS: dict[str, Any] = {
    "invoke": lambda m, x: m.invoke(x, ALICE),
    "stream": lambda m, x: list(m.stream(x, ALICE)),
    "batch": lambda m, x: m.batch([x], [ALICE]),
    "with_config": lambda m, x: m.with_config(ALICE).invoke(x),
    "bind": lambda m, x: m.bind(session_id="alice").invoke(x),
    "argument": lambda m, x: m.invoke(x, session_id="alice"),
    "thread_id": lambda m, x: m.invoke(x, {"configurable": {"thread_id": "alice"}}),
    "constructor": lambda m, x: m.model_copy(update={"session_id": "alice"}).invoke(x),
    "chain": lambda m, x: (PROMPT | m).invoke({"text": x}, ALICE),
    "chain stream": lambda m, x: list((PROMPT | m).stream({"text": x}, ALICE)),
    "chain batch": lambda m, x: (PROMPT | m).batch([{"text": x}], [ALICE]),
    "lambda": lambda m, x: RunnableLambda(lambda text: m.invoke(text)).invoke(x, ALICE),
    "configurable": lambda m, x: (
        m.configurable_fields(session_id=ConfigurableField(id="who")).with_config(configurable={"who": "alice"}).invoke(x)
    ),
    "events v3": lambda m, x: list(m.stream_events(x, ALICE, version="v3")),
    "generate": lambda m, x: RunnableLambda(lambda text: m.generate([[HumanMessage(text)]])).invoke(x, ALICE),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_session_is_found_whichever_way_a_call_comes(way: str, chat: HMTChatModel, assistant: Assistant) -> None:
    WAYS[way](chat, "hello")
    assert said(assistant, "alice") == ["hello"]


async def _list(stream: Any) -> list[Any]:
    return [one async for one in stream]


async def _events(model: HMTChatModel, text: str) -> None:
    await _list(await model.astream_events(text, ALICE, version="v3"))


ASYNC_WAYS: dict[str, Any] = {
    "ainvoke": lambda m, x: m.ainvoke(x, ALICE),
    "astream": lambda m, x: _list(m.astream(x, ALICE)),
    "abatch": lambda m, x: m.abatch([x], [ALICE]),
    "chain": lambda m, x: (PROMPT | m).ainvoke({"text": x}, ALICE),
    "chain stream": lambda m, x: _list((PROMPT | m).astream({"text": x}, ALICE)),
    "events v2": lambda m, x: _list(m.astream_events(x, ALICE, version="v2")),
    "events v3": _events,
}


@pytest.mark.filterwarnings("ignore:.*is in beta")
@pytest.mark.parametrize("way", ASYNC_WAYS)
async def test_a_session_is_found_in_async_calls(way: str, chat: HMTChatModel, assistant: Assistant) -> None:
    await ASYNC_WAYS[way](chat, "hello")
    assert said(assistant, "alice") == ["hello"]


def test_no_session_nothing_stored_and_no_keys_no_lookup(chat: HMTChatModel, assistant: Assistant) -> None:
    chat.invoke("hello")
    chat.model_copy(update={"session_keys": ()}).invoke("hello", ALICE)
    assert assistant.store.sessions() == []


def test_zero_is_a_thread_and_the_llm_s_generate_looks_for_a_session(chat: HMTChatModel, assistant: Assistant) -> None:
    chat.invoke("hello", {"configurable": {"thread_id": 0}})
    assert said(assistant, "0") == ["hello"]
    HMTLLM(engine=assistant, max_tokens=4, session_id="llm").generate(["hello"])
    assert said(assistant, "llm") == ["hello"]


def test_two_sessions_in_one_batch_never_meet(chat: HMTChatModel, assistant: Assistant) -> None:
    bob: Any = {"configurable": {"session_id": "bob"}}
    chat.batch(["I am Alice", "I am Bob"], [ALICE, bob])
    assert said(assistant, "alice") == ["I am Alice"] and said(assistant, "bob") == ["I am Bob"]


@pytest.mark.slow
async def test_twenty_calls_at_once_lose_no_turn(chat: HMTChatModel, assistant: Assistant) -> None:
    await asyncio.gather(*(chat.ainvoke(f"turn {number}", ALICE) for number in range(20)))
    assert sorted(said(assistant, "alice")) == sorted(f"turn {number}" for number in range(20))


# --- what is remembered -------------------------------------------------------------------------------------------------


def test_an_abandoned_stream_writes_nothing(chat: HMTChatModel, assistant: Assistant) -> None:
    stream = chat.stream("hello", ALICE)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert said(assistant, "alice") == []


def test_the_answer_is_stored_before_the_last_text_is_given_out(chat: HMTChatModel, assistant: Assistant) -> None:
    pieces = 0
    for chunk in chat.stream("hello", ALICE):
        pieces += bool(chunk.text)
        stored = len(assistant.session("alice").messages())
    assert pieces >= 1 and stored == 2


def test_a_resent_conversation_is_remembered_once_and_edits_replace(chat: HMTChatModel, assistant: Assistant) -> None:
    talk: list[Any] = [SystemMessage("Be."), HumanMessage("one")]
    talk.append(chat.invoke(talk, ALICE))
    talk.append(HumanMessage("two"))
    talk.append(chat.invoke(talk, ALICE))
    assert said(assistant, "alice") == ["one", "two"]
    assert assistant.session("alice").system() == "Be."
    chat.invoke([*talk[:3], HumanMessage("TWO")], ALICE)
    assert said(assistant, "alice") == ["one", "TWO"]


def test_what_was_recalled_and_used_is_told_once(chat: HMTChatModel) -> None:
    for number in range(8):
        chat.invoke(f"fact {number} is {number * 7}", ALICE)
    answer = chat.invoke("What is fact 3?", ALICE)
    about = answer.response_metadata["hmt"]
    assert about["session_id"] == "alice" and len(about["message_ids"]) == 2
    assert about["recalled"] and {"segment", "weight", "text", "source"} == set(about["recalled"][0])
    usage = answer.usage_metadata
    assert usage is not None and usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == 6 and answer.response_metadata["finish_reason"] == "length"
    streamed = [one.usage_metadata for one in chat.stream("What is fact 3?", ALICE)]
    assert sum(one is not None for one in streamed) == 1


# --- options, caches, objects -------------------------------------------------------------------------------------------


def test_options_of_a_call_come_before_the_object_s(chat: HMTChatModel) -> None:
    whole = chat.invoke("hello", max_tokens=20).text
    assert len(whole) > len(chat.invoke("hello").text)
    stop = whole[4:6]
    cut = whole[: whole.index(stop)]
    assert chat.invoke("hello", max_tokens=20, stop=[stop]).text == cut
    stopping = chat.model_copy(update={"stop_sequences": [stop]})
    assert stopping.invoke("hello", max_tokens=20).text == cut
    assert stopping.invoke("hello", max_tokens=20, stop=[]).text == whole
    hot = {"temperature": 1.5, "max_tokens": 12}
    assert chat.invoke("hello", seed=1, **hot).text == chat.invoke("hello", seed=1, **hot).text
    assert chat.invoke("hello", seed=1, **hot).text != chat.invoke("hello", seed=2, **hot).text


def test_sessions_bypass_caches_and_other_calls_use_them(chat: HMTChatModel, assistant: Assistant) -> None:
    cache = InMemoryCache()
    cached = chat.model_copy(update={"cache": cache})
    for _ in range(2):
        cached.invoke("hello", ALICE)
    assert len(said(assistant, "alice")) == 2 and not cache._cache
    cached.invoke("hello")
    assert len(cache._cache) == 1


def test_the_process_s_cache_is_used_without_a_session_only(chat: HMTChatModel, assistant: Assistant) -> None:
    cache = InMemoryCache()
    set_llm_cache(cache)
    try:
        chat.invoke("hello", ALICE)
        assert not cache._cache
        chat.invoke("hello")
        assert len(cache._cache) == 1
    finally:
        set_llm_cache(None)


def test_structured_output_parses_or_says_why(chat: HMTChatModel) -> None:
    class Answer(BaseModel):
        n: int

    for method in ("json_schema", "json_mode"):
        found = chat.with_structured_output(Answer, method=method, include_raw=True).invoke("how many?", max_tokens=80)
        assert isinstance(found["parsed"], Answer) and found["parsing_error"] is None and found["raw"].text
    with pytest.raises(ValueError, match="Methods: json_schema"):
        chat.with_structured_output(Answer, method="other")  # type: ignore[arg-type]


def test_objects_are_copied_pickled_and_printed_without_their_model(chat: HMTChatModel, assistant: Assistant) -> None:
    chat.invoke("hello")
    assert copy.deepcopy(chat).engine is assistant
    assert len(repr(chat)) < 1000 and "Llama" not in repr(chat)
    made = HMTChatModel(model="no-such-model", store="nowhere")
    assert pickle.loads(pickle.dumps(made)).model_name == "no-such-model"
    assert HMTChatModel(model="a", store="s").assistant() is HMTChatModel(model="a", store="s").assistant()
    with pytest.raises(LookupError, match="no-such-model"):
        made.invoke("hello")


def test_weights_are_loaded_once_whatever_the_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(HMTModel, "from_pretrained", lambda *_, **__: loaded.append(1) or MODEL)
    chat = HMTChatModel(model="a-model", reader="same", store=str(tmp_path), max_tokens=2)
    llm = HMTLLM(model="a-model", reader="same", store=str(tmp_path), max_tokens=2)
    for _ in range(2):
        chat.invoke("hello", ALICE)
        llm.invoke("hello", ALICE)
        chat.invoke("hello")
    assert len(loaded) == 1


@pytest.mark.slow
def test_importing_and_constructing_load_no_torch() -> None:
    code = "import sys, langchain_hmt as h; h.HMTChatModel(); h.HMTRetriever(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "-c", code], check=True)


def test_tokens_are_counted_by_the_model_s_tokenizer(chat: HMTChatModel) -> None:
    assert chat.get_num_tokens("hello") == 5
    rendered = MODEL.backbone.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.get_num_tokens_from_messages([HumanMessage("hello")]) == len(MODEL.backbone.encode(rendered))


def test_tool_choices_of_every_form_are_understood(chat: HMTChatModel) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    for choice in ("auto", "none", "any", "required", True, "add", {"type": "function", "function": {"name": "add"}}, None):
        chat.bind_tools([add], tool_choice=choice, strict=True, parallel_tool_calls=False)
    with pytest.raises(ValueError, match=r"names no tool of this call\. Tools: add"):
        chat.bind_tools([add], tool_choice="subtract")
    chat.bind_tools([], response_format=None)


@pytest.mark.slow
def test_errors_are_langchains_and_ours(tmp_path: Path, assistant: Assistant, chat: HMTChatModel) -> None:
    with pytest.raises(exceptions.ContextOverflowError, match=r"pinned_tokens=\d+.*raise pinned_tokens") as overflow:
        chat.invoke([SystemMessage("word " * 200), HumanMessage("x")], ALICE)
    assert isinstance(overflow.value, HMTError)
    with pytest.raises(exceptions.ModelNotFoundError, match="no-such-model"):
        HMTChatModel(model="no-such-model", store=str(tmp_path)).invoke("x")
    with pytest.raises(exceptions.ModelInvalidRequestError, match="nothing to answer"):
        chat.invoke([SystemMessage("x")])
    with pytest.raises(exceptions.ContextOverflowError):
        HMTChatMessageHistory("h", engine=assistant).add_messages([SystemMessage("word " * 200)])
    with pytest.raises(exceptions.ModelInvalidRequestError, match="a document is a text"):
        HMTRetriever(engine=assistant, corpora=("x",)).add_documents([Document("")])
    with pytest.raises(exceptions.ModelInvalidRequestError, match="empty"):
        HMTRetriever(engine=assistant, corpora=("x",)).add_documents([Document("text " * 9)]) and HMTRetriever(
            engine=assistant, corpora=("x",)
        ).invoke("")


def test_a_locked_session_is_a_timeout_that_may_be_tried_again(tmp_path: Path) -> None:
    with MemoryStore(tmp_path, timeout=0.1) as store, MemoryStore(tmp_path) as other:
        chat = HMTChatModel(engine=Assistant(MODEL, store=store), max_tokens=4)
        chat.invoke("hello", ALICE)
        with other.session("alice", MODEL)._reading(), pytest.raises(exceptions.ModelTimeoutError) as busy:
            chat.invoke("again", ALICE)
        assert busy.value.is_retryable and "Nothing was stored" in str(busy.value)
        assert chat.invoke("again", ALICE).text


# --- messages -----------------------------------------------------------------------------------------------------------


def test_messages_of_every_kind() -> None:
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    found = to_dicts([("human", "hi"), AIMessage("", tool_calls=[call]), ToolMessage("3", tool_call_id="c1", status="error")])
    assert [one["role"] for one in found] == ["user", "assistant", "tool"] and found[2]["tool_call_id"] == "c1"
    assert found[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert to_dict(AIMessageChunk("x", id="7")) == {"role": "assistant", "content": "x", "id": "7"}
    assert to_dict(ChatMessage("x", role="critic"))["role"] == "critic"
    blocks = [
        "a",
        {"type": "text", "text": "b"},
        {"type": "reasoning", "reasoning": "?"},
        {"type": "tool_result", "content": "c"},
    ]
    assert text_of(blocks) == "abc"
    with pytest.raises(ValueError, match="text only, not a content block of type 'image_url'"):
        text_of([{"type": "image_url", "image_url": "x"}])


def test_an_image_is_refused_and_nothing_is_stored(chat: HMTChatModel, assistant: Assistant) -> None:
    with pytest.raises(ValueError, match="text only"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])], ALICE)
    assert "alice" not in assistant.store.sessions()


# --- the other classes --------------------------------------------------------------------------------------------------


def test_the_llm_remembers_prompt_and_answer_in_turn(assistant: Assistant) -> None:
    llm = HMTLLM(engine=assistant, max_tokens=6)
    text = llm.invoke("hello", ALICE)
    assert isinstance(text, str) and text == "".join(HMTLLM(engine=assistant, max_tokens=6).stream("hello"))
    llm.batch(["again", "again"], [ALICE, {"configurable": {"session_id": "bob"}}])
    assert said(assistant, "alice") == ["hello", "again"] and said(assistant, "bob") == ["again"]
    assert len(llm.generate(["a", "b"]).generations) == 2
    cache = InMemoryCache()
    cached = llm.model_copy(update={"cache": cache})
    cached.invoke("x", ALICE)
    cached.invoke("x", temperature=0.5)
    assert not cache._cache
    cached.invoke("x")
    assert len(cache._cache) == 1


async def test_the_llm_answers_async(assistant: Assistant) -> None:
    llm = HMTLLM(engine=assistant, max_tokens=4)
    await llm.ainvoke("one", ALICE)
    await _list(llm.astream("two", ALICE))
    await llm.abatch(["three"], [ALICE])
    assert said(assistant, "alice") == ["one", "two", "three"]


async def test_the_retriever_recalls_documents_and_sessions(assistant: Assistant) -> None:
    retriever = HMTRetriever(engine=assistant, corpora=("handbook",), k=2)
    document = Document("The notice period is three months. " * 3, metadata={"source": "contract.md", "year": 2024})
    retriever.add_documents([document, Document("The canteen opens at noon. " * 3)])
    found = retriever.invoke("How long is the notice period?")
    assert len(found) == 2 and len(await retriever.ainvoke("notice", k=1)) == 1
    about = found[0].metadata
    assert about["source"] == "handbook/contract.md" and about["year"] == 2024, "what the document brought, and its source"
    assert re.fullmatch(r"handbook/contract\.md:1:[0-9a-f]{8}", str(found[0].id))
    weights = [one.metadata["attention_weight"] for one in found]
    assert weights == sorted(weights, reverse=True)
    assert retriever.model_copy(update={"min_weight": 1.1}).invoke("notice") == []
    session = HMTRetriever(engine=assistant, k=1)
    assert session.invoke("notice") == []
    assistant.session("alice").add({"role": "user", "content": "The door code is 4071, remember."})
    (one,) = session.invoke("door code", ALICE)
    assert one.metadata["session_id"] == "alice"
    assert [len(found) for found in session.batch(["door", "door"], [ALICE, {}])] == [1, 0]
    with pytest.raises(ValueError, match="name a corpus"):
        session.add_documents([document])


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_history_around_any_model(assistant: Assistant) -> None:
    model = FakeListChatModel(responses=["one", "two"])
    chain = RunnableWithMessageHistory(model, lambda name: HMTChatMessageHistory(name, engine=assistant))
    chain.invoke([HumanMessage("hello")], ALICE)
    list(chain.stream([HumanMessage("again")], ALICE))
    held = HMTChatMessageHistory("alice", engine=assistant)
    assert [one.content for one in held.messages] == ["hello", "one", "again", "two"]
    assert all(type(one) in (HumanMessage, AIMessage) for one in held.messages)
    assert len(HMTChatMessageHistory("alice", engine=assistant, last=1).messages) == 1
    held.clear()
    assert held.messages == []


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_history_around_the_chat_model_itself_doubles_nothing(chat: HMTChatModel, assistant: Assistant) -> None:
    plain = chat.model_copy(update={"session_keys": ()})
    chain = RunnableWithMessageHistory(plain, lambda name: HMTChatMessageHistory(name, engine=assistant))
    for text in ("one", "two"):
        chain.invoke([HumanMessage(text)], ALICE)
    assert said(assistant, "alice") == ["one", "two"]


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("kind", [HMTChatModel, HMTLLM])
def test_a_history_and_a_model_that_keep_the_same_session_are_refused(kind: Any, assistant: Assistant, tmp_path: Path) -> None:
    """Each would store every message; the folder may be written in another way."""
    model = kind(engine=assistant, max_tokens=4)
    store = tmp_path / "other" / ".." / "memories"
    store.parent.parent.mkdir(exist_ok=True)
    chain = RunnableWithMessageHistory(
        ChatPromptTemplate.from_messages([("placeholder", "{past}"), ("human", "{text}")]) | model | StrOutputParser(),
        lambda name: HMTChatMessageHistory(name, engine=Assistant(MODEL, store=store)),
        input_messages_key="text",
        history_messages_key="past",
    )
    with pytest.raises(exceptions.ModelInvalidRequestError, match=r"store every message in session 'alice'.*session_keys=\(\)"):
        chain.invoke({"text": "hello"}, ALICE)
    assert assistant.store.sessions() == []


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_history_of_another_session_is_no_matter(chat: HMTChatModel, assistant: Assistant) -> None:
    elsewhere = RunnableWithMessageHistory(chat, lambda name: HMTChatMessageHistory(f"copy of {name}", engine=assistant))
    for text in ("one", "two"):
        elsewhere.invoke([HumanMessage(text)], ALICE)
    assert said(assistant, "alice") == said(assistant, "copy of alice") == ["one", "two"]


@pytest.mark.filterwarnings("ignore:.*deprecated")
async def test_a_history_by_two_keys_and_async(assistant: Assistant) -> None:
    keys = [ConfigurableFieldSpec(id=name, annotation=str) for name in ("user", "topic")]
    chain = RunnableWithMessageHistory(
        FakeListChatModel(responses=["one"]),
        lambda user, topic: HMTChatMessageHistory(f"{user}: {topic}", engine=assistant),
        history_factory_config=keys,
    )
    await chain.ainvoke([HumanMessage("hello")], {"configurable": {"user": "ada", "topic": "work"}})
    held = HMTChatMessageHistory("ada: work", engine=assistant)
    assert [one.content for one in await held.aget_messages()] == ["hello", "one"]
    await held.aadd_messages([HumanMessage("more")])
    await held.aclear()
    assert held.messages == []


def test_looking_at_a_history_makes_no_session(assistant: Assistant) -> None:
    held = HMTChatMessageHistory("ghost", engine=assistant)
    assert held.messages == []
    held.clear()
    assert assistant.store.sessions() == []


def test_a_history_that_cannot_be_written_says_so(assistant: Assistant) -> None:
    held = HMTChatMessageHistory("alice", engine=assistant)
    with pytest.raises(HMTError):
        held.add_messages([HumanMessage("\ud800")])
    assert isinstance(held.last_error, HMTError) and held.messages == []


def test_tool_calls_come_back_from_a_history_as_they_were(assistant: Assistant) -> None:
    held = HMTChatMessageHistory("alice", engine=assistant)
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    messages = [HumanMessage("hi", id="h1"), AIMessage("", tool_calls=[call]), ToolMessage("3", tool_call_id="c1")]
    held.add_messages(messages)
    found = held.messages
    assert isinstance(found[1], AIMessage) and found[1].tool_calls == messages[1].tool_calls  # type: ignore[attr-defined]
    assert isinstance(found[2], ToolMessage) and found[2].tool_call_id == "c1" and found[0].id == "h1"
