"""The LlamaIndex LLM: endpoints, events, sessions, tools, objects, and what frameworks do with such an object."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import llama_index.core.instrumentation as instrument
import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.hmt import HMTLLM
from pydantic import BaseModel
from scripted import ScriptedAssistant
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import Assistant, MemoryStore
from hmt_memory.errors import InputError
from llama_index_hmt.messages import from_stored, to_dicts

MODEL = light_model(config=REMEMBERING, tokenizer=byte_tokenizer())


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(MODEL, store=tmp_path / "memories")


@pytest.fixture
def llm(assistant: Assistant) -> HMTLLM:
    return HMTLLM(engine=assistant, max_tokens=6)


@pytest.fixture
def scripted(tmp_path: Path) -> HMTLLM:
    return HMTLLM(engine=ScriptedAssistant(_scripted_model(), store=tmp_path / "memories"))


def _scripted_model() -> Any:
    from scripted import MODEL

    return MODEL


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def said(assistant: Assistant, name: str) -> list[str]:
    return [one.content for one in assistant.session(name).messages() if one.role == "user"]


# --- endpoints ----------------------------------------------------------------------------------------------------------


def test_class() -> None:
    assert BaseLLM.__name__ in [one.__name__ for one in HMTLLM.__mro__]
    assert HMTLLM.class_name() == "HMTLLM"


@pytest.mark.slow
def test_metadata_is_said_without_loading_anything() -> None:
    code = (
        "import sys; from llama_index.llms.hmt import HMTLLM; from llama_index.memory.hmt import HMTMemory, HMTMemoryBlock;"
        "from llama_index.retrievers.hmt import HMTRetriever;"
        "found = HMTLLM(model='a/b', max_tokens=7); found.to_payload(); HMTMemory(); HMTMemoryBlock();"
        "print(found.metadata.model_name, found.metadata.num_output, found.metadata.is_function_calling_model,"
        "found.metadata.is_chat_model, found.metadata.context_window, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["a/b", "7", "True", "True", "1048576", "False"], done.stderr
    with pytest.raises(ValueError, match="greater than or equal to 1024"):
        HMTLLM(context_window=512)


async def test_all_eight_endpoints_say_the_same(llm: HMTLLM) -> None:
    messages = [user("hello")]
    whole, streamed = llm.chat(messages), list(llm.stream_chat(messages))
    awaited, astreamed = await llm.achat(messages), [one async for one in await llm.astream_chat(messages)]
    assert whole.message == awaited.message == streamed[-1].message == astreamed[-1].message
    assert whole.message.role == MessageRole.ASSISTANT and whole.message.content and whole.delta is None
    assert (
        "".join(one.delta or "" for one in streamed) == "".join(one.delta or "" for one in astreamed) == whole.message.content
    )
    assert all((streamed[-1].message.content or "").startswith(one.message.content or "") for one in streamed)
    completed, pieces = llm.complete("hello"), list(llm.stream_complete("hello"))
    acompleted, apieces = await llm.acomplete("hello"), [one async for one in await llm.astream_complete("hello")]
    assert whole.message.content == completed.text == acompleted.text == pieces[-1].text == apieces[-1].text
    assert "".join(one.delta or "" for one in pieces) == "".join(one.delta or "" for one in apieces) == completed.text
    assert completed.delta is None and whole.raw == awaited.raw == streamed[-1].raw == astreamed[-1].raw == completed.raw


def test_what_is_counted_is_in_raw_and_token_counters_read_it(llm: HMTLLM) -> None:
    counter = TokenCountingHandler()
    counted = llm.model_copy(update={"callback_manager": CallbackManager([counter])})
    raw = counted.chat([user("hello")]).raw
    asked = raw["usage"]["prompt_tokens"]
    assert raw["usage"] == {"prompt_tokens": asked, "completion_tokens": 6, "total_tokens": asked + 6}
    assert asked == llm.assistant().count_message_tokens([{"role": "user", "content": "hello"}])
    assert raw["finish_reason"] == "length" and raw["hmt"] == {"recalled": [], "view_tokens": raw["hmt"]["view_tokens"]}
    list(counted.stream_chat([user("hello")]))
    assert counter.completion_llm_token_count == 12
    assert counter.prompt_llm_token_count == 2 * raw["usage"]["prompt_tokens"]


def test_a_formatted_prompt_is_continued_as_it_stands(llm: HMTLLM) -> None:
    with_template = llm.complete("hello")
    bare = llm.complete("hello", formatted=True)
    assert bare.raw["usage"]["prompt_tokens"] == 5 < with_template.raw["usage"]["prompt_tokens"]
    own = MODEL.generate("hello", max_new_tokens=6, min_new_tokens=1).finish()
    assert bare.text == own.text and list(llm.stream_complete("hello", formatted=True))[-1].text == own.text
    with pytest.raises(ValueError, match="a formatted prompt is no turn of a session"):
        llm.complete("hello", formatted=True, session_id="alice")


def test_a_system_prompt_goes_before_a_prompt_once(llm: HMTLLM) -> None:
    brief = llm.model_copy(update={"system_prompt": "Be brief, please."})
    asked: list[Any] = []
    reply = Assistant.reply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Assistant, "reply", lambda self, messages, **options: asked.append(messages) or reply(self, messages, **options)
        )
        brief.complete("hello")
        brief.predict(PromptTemplate("hello {name}"), name="Ann")
    assert asked[0] == [{"role": "system", "content": "Be brief, please."}, {"role": "user", "content": "hello"}]
    assert asked[1] == [{"role": "system", "content": "Be brief, please."}, {"role": "user", "content": "hello Ann"}]


def test_options_are_the_object_s_unless_the_call_has_its_own(llm: HMTLLM) -> None:
    hot = llm.model_copy(update={"temperature": 5.0, "seed": 1})
    first, again, other = (hot.chat([user("x")], **given).message.content for given in ({}, {}, {"seed": 2}))
    assert first == again != other
    assert llm.chat([user("x")], max_tokens=2).raw["usage"]["completion_tokens"] == 2
    text = llm.chat([user("x")], max_tokens=20).message.content
    stopped = llm.chat([user("x")], max_tokens=20, stop=[text[5]]).message.content
    assert stopped == text[: text.index(text[5])]
    with pytest.raises(TypeError, match="max_length"):
        llm.chat([user("x")], max_length=3)


async def test_the_event_loop_goes_on_while_a_model_thinks(llm: HMTLLM) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    clock = asyncio.create_task(tick())
    for call in (llm.achat([user("x")], max_tokens=40), llm.acomplete("x", max_tokens=40)):
        before = ticks
        await call
        assert ticks > before
    before = ticks
    async for _ in await llm.astream_chat([user("x")], max_tokens=40):
        pass
    assert ticks > before
    clock.cancel()


async def test_async_calls_do_all_their_work_in_other_threads(llm: HMTLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    reply = Assistant.reply

    def watched(self: Assistant, *args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return reply(self, *args, **options)

    monkeypatch.setattr(Assistant, "reply", watched)
    for way in ASYNC_WAYS.values():
        await way(llm, "hello")
    assert len(threads) == 4 and threading.main_thread() not in threads


class Heard(BaseEventHandler):
    """Names of the events of LLMs."""

    names: list[str]

    @classmethod
    def class_name(cls) -> str:
        return "Heard"

    def handle(self, event: Any, **kwargs: Any) -> None:
        if event.class_name().startswith("LLM"):
            self.names.append(event.class_name())


async def test_every_call_is_heard_of_once(llm: HMTLLM) -> None:
    heard, dispatcher = Heard(names=[]), instrument.get_dispatcher()
    dispatcher.add_event_handler(heard)
    try:
        llm.chat([user("x")])
        assert heard.names == ["LLMChatStartEvent", "LLMChatEndEvent"]
        heard.names.clear()
        count = len([one async for one in await llm.astream_chat([user("x")])])
        assert heard.names == ["LLMChatStartEvent", *["LLMChatInProgressEvent"] * count, "LLMChatEndEvent"]
        heard.names.clear()
        await llm.acomplete("x")
        assert heard.names == ["LLMCompletionStartEvent", "LLMCompletionEndEvent"]
    finally:
        dispatcher.event_handlers.remove(heard)


# --- messages -----------------------------------------------------------------------------------------------------------


def test_blocks_and_roles_of_every_kind() -> None:
    point = CachePoint(cache_control=CacheControl(type="ephemeral"))
    blocks = [ThinkingBlock(content="hm"), TextBlock(text="one"), point, TextBlock(text="two")]
    message = ChatMessage(role="model", blocks=[*blocks, CitableBlock(title="t", source="s", content="three")])
    assert to_dicts([message]) == [{"role": "assistant", "content": "one\ntwo\nthree"}]
    roles = [to_dicts([ChatMessage(role=role, content="x")])[0]["role"] for role in MessageRole]
    assert set(roles) == {"system", "user", "assistant", "tool"}
    assert to_dicts([ChatMessage(role="user")]) == [{"role": "user", "content": ""}]


def test_what_is_no_text_is_refused_or_left_out() -> None:
    picture = ChatMessage(role="user", blocks=[ImageBlock(image=b"123", image_mimetype="image/png"), TextBlock(text="this?")])
    with pytest.raises(ValueError, match=r"read text only, not a block of type 'image'\. Leave it out or describe it"):
        to_dicts([picture])
    assert to_dicts([picture], text_only=True) == [{"role": "user", "content": "this?"}]


@pytest.mark.parametrize("arguments", [{"city": "Zürich"}, '{"city": "Zürich"}'])
def test_calls_come_back_from_a_session_as_they_were(arguments: Any, assistant: Assistant) -> None:
    block = ToolCallBlock(tool_call_id="c1", tool_name="weather", tool_kwargs=arguments)
    result = ChatMessage(role="tool", content="sunny", additional_kwargs={"tool_call_id": "c1"})
    asked = ChatMessage(role="assistant", blocks=[TextBlock(text="Let me see."), block])
    dicts = to_dicts([asked, result, user("thanks")])
    assert json.loads(dicts[0]["tool_calls"][0]["function"]["arguments"]) == {"city": "Zürich"}
    assert dicts[1] == {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
    assistant.add("alice", dicts)
    first, second, third = map(from_stored, assistant.session("alice").messages())
    assert first.content == "Let me see." and first.blocks[1] == block.model_copy(update={"tool_kwargs": {"city": "Zürich"}})
    assert second == result and third == user("thanks")


def test_calls_of_other_integrations_are_understood() -> None:
    function = {"name": "weather", "arguments": '{"city": "Bern"}'}

    class Call(BaseModel):
        id: str = "c1"
        function: dict[str, Any]

    for call in (Call(function=function), {"id": "c1", "type": "function", "function": function}):
        message = ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]})
        assert to_dicts([message])[0]["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]


# --- sessions -----------------------------------------------------------------------------------------------------------

WAYS: dict[str, Any] = {
    "chat": lambda llm, x, **given: llm.chat([user(x)], **given),
    "stream_chat": lambda llm, x, **given: list(llm.stream_chat([user(x)], **given)),
    "complete": lambda llm, x, **given: llm.complete(x, **given),
    "stream_complete": lambda llm, x, **given: list(llm.stream_complete(x, **given)),
}


async def _list(stream: Any) -> list[Any]:
    return [one async for one in await stream]


ASYNC_WAYS: dict[str, Any] = {
    "achat": lambda llm, x, **given: llm.achat([user(x)], **given),
    "astream_chat": lambda llm, x, **given: _list(llm.astream_chat([user(x)], **given)),
    "acomplete": lambda llm, x, **given: llm.acomplete(x, **given),
    "astream_complete": lambda llm, x, **given: _list(llm.astream_complete(x, **given)),
}


@pytest.mark.parametrize("way", [*WAYS, *ASYNC_WAYS])
@pytest.mark.parametrize("of_the_object", [True, False])
async def test_a_session_remembers_calls_of_every_kind(
    way: str, of_the_object: bool, llm: HMTLLM, assistant: Assistant
) -> None:
    chosen = llm.model_copy(update={"session_id": "alice"}) if of_the_object else llm
    given = {} if of_the_object else {"session_id": "alice"}
    if way in WAYS:
        WAYS[way](chosen, "hello", **given)
    else:
        await ASYNC_WAYS[way](chosen, "hello", **given)
    assert said(assistant, "alice") == ["hello"] and assistant.store.sessions() == ["alice"]


def test_without_a_session_nothing_is_stored(llm: HMTLLM, assistant: Assistant) -> None:
    llm.chat([user("hello")])
    assert assistant.store.sessions() == []


def test_a_resent_conversation_is_remembered_once_and_an_edit_replaces(llm: HMTLLM, assistant: Assistant) -> None:
    talk = [user("one")]
    for text in ("two", "three"):
        talk += [llm.chat(talk, session_id="alice").message, user(text)]
    response = llm.chat(talk, session_id="alice")
    assert said(assistant, "alice") == ["one", "two", "three"]
    ids = [one.id for one in assistant.session("alice").messages()]
    assert response.raw["hmt"]["message_ids"] == ids[-2:]
    assert response.raw["usage"]["prompt_tokens"] == response.raw["hmt"]["view_tokens"]
    llm.chat([*talk[:2], user("2")], session_id="alice")
    assert said(assistant, "alice") == ["one", "2"]
    llm.chat([user("one")], session_id="alice", history_mode="incremental")
    assert said(assistant, "alice") == ["one", "2", "one"]
    llm.chat([user("one")], session_id="alice", history_mode="full")
    assert said(assistant, "alice") == ["one"], "another try of the first"


async def test_an_abandoned_stream_writes_nothing(llm: HMTLLM, assistant: Assistant) -> None:
    stream = llm.stream_chat([user("hello")], session_id="alice")
    next(stream)
    stream.close()
    astream = await llm.astream_chat([user("hello")], session_id="alice")
    await anext(astream)
    await astream.aclose()
    assert said(assistant, "alice") == []


async def test_the_answer_is_stored_before_its_last_piece_is_given_out(scripted: HMTLLM) -> None:
    stored = {}
    async for response in await scripted.astream_chat([user("hello")], session_id="alice", max_tokens=5):
        stored.setdefault(response.message.content, len(scripted.assistant().session("alice").messages()))
    assert stored["Hell"] == 0 and stored["Hello"] == 2


async def test_twenty_calls_at_once_lose_no_turn_and_two_sessions_never_meet(llm: HMTLLM, assistant: Assistant) -> None:
    calls = [llm.achat([user(f"turn {at}")], session_id=("alice", "bob")[at % 2], max_tokens=2) for at in range(20)]
    await asyncio.gather(*calls)
    assert sorted(said(assistant, "alice")) == sorted(f"turn {at}" for at in range(0, 20, 2))
    assert sorted(said(assistant, "bob")) == sorted(f"turn {at}" for at in range(1, 20, 2))


async def test_a_cancelled_call_keeps_the_session_whole(llm: HMTLLM, assistant: Assistant) -> None:
    task = asyncio.create_task(_list(llm.astream_chat([user("hello")], session_id="alice", max_tokens=200)))
    while not assistant.store.sessions():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    time.sleep(0.2)
    assert said(assistant, "alice") == []
    llm.chat([user("again")], session_id="alice")
    assert said(assistant, "alice") == ["again"]


# --- tools and objects --------------------------------------------------------------------------------------------------


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}!"


TOOLS = [FunctionTool.from_defaults(greet), FunctionTool.from_defaults(add)]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


async def test_tools_are_called_in_every_way(scripted: HMTLLM) -> None:
    history = [user("Add the numbers, please.")]
    responses = [
        scripted.chat_with_tools(TOOLS, chat_history=history, tool_choice="add"),
        await scripted.achat_with_tools(TOOLS, chat_history=history, tool_choice="add"),
        list(scripted.stream_chat_with_tools(TOOLS, chat_history=history, tool_choice="add"))[-1],
        [one async for one in await scripted.astream_chat_with_tools(TOOLS, chat_history=history, tool_choice="add")][-1],
    ]
    for response in responses:
        (call,) = scripted.get_tool_calls_from_response(response)
        assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 3, "b": 3}) and call.tool_id.startswith("call_")
        assert response.message.blocks == [
            ToolCallBlock(tool_call_id=call.tool_id, tool_name="add", tool_kwargs={"a": 3, "b": 3})
        ]
        assert response.raw["finish_reason"] == "tool_calls"
    assert history == [user("Add the numbers, please.")], "the caller's list stays as it was"
    assert str(scripted.predict_and_call(TOOLS, user_msg="Greet 'Ann'.")) == "Hello, Ann!"
    assert str(await scripted.apredict_and_call(TOOLS, user_msg="Greet 'Ann'.")) == "Hello, Ann!"


def test_a_call_is_required_only_where_it_is(scripted: HMTLLM) -> None:
    prepared = scripted._prepare_chat_with_tools(TOOLS, user_msg="x", tool_required=True)
    assert prepared["tool_choice"] == "required"
    assert scripted._prepare_chat_with_tools(TOOLS, user_msg="x", tool_required=True, tool_choice="add")["tool_choice"] == "add"
    assert scripted._prepare_chat_with_tools(TOOLS, user_msg=user("x"))["tool_choice"] is None
    assert scripted._prepare_chat_with_tools([], user_msg="x")["tools"] is None
    free = scripted.chat_with_tools(TOOLS, user_msg="Hello", tool_choice="none")
    assert scripted.get_tool_calls_from_response(free, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"the model called no tool\. It said: 'Hello, nice to meet you\.'"):
        scripted.get_tool_calls_from_response(free)
    with pytest.raises(InputError, match="names no tool"):
        scripted.chat_with_tools(TOOLS, user_msg="x", tool_choice="subtract")


def test_random_weights_are_held_to_a_tool_s_arguments(llm: HMTLLM) -> None:
    wild = HMTLLM(engine=Assistant(_scripted_model(), store=llm.store), temperature=1.0, seed=3, max_tokens=120)
    (call,) = wild.get_tool_calls_from_response(wild.chat_with_tools(TOOLS, user_msg="x", tool_required=True))
    assert call.tool_name in ("greet", "add")
    assert set(call.tool_kwargs) == ({"a", "b"} if call.tool_name == "add" else {"name"})


@pytest.mark.slow
async def test_objects_come_whole_streamed_and_from_a_structured_llm(scripted: HMTLLM) -> None:
    prompt, person = PromptTemplate("Tell me of {who}."), Person(name="text", age=3)
    assert scripted.structured_predict(Person, prompt, who="Ann") == person
    assert await scripted.astructured_predict(Person, prompt, who="Ann") == person
    *parts, streamed = scripted.stream_structured_predict(Person, prompt, who="Ann")
    named = [getattr(part, "name", None) is not None for part in parts]
    assert named == sorted(named), "what is there stays there"
    assert {name for part in parts if (name := getattr(part, "name", None)) is not None} >= {"te", "text"}, "it grows"
    assert Person.model_validate(streamed.model_dump()) == person
    *_, streamed = [one async for one in await scripted.astream_structured_predict(Person, prompt, who="Ann")]
    assert Person.model_validate(streamed.model_dump()) == person
    with pytest.raises(ValueError, match="Invalid JSON"):
        list(scripted.model_copy(update={"max_tokens": 9}).stream_structured_predict(Person, prompt, who="Ann"))
    structured = scripted.as_structured_llm(Person)
    assert structured.complete("Tell me of Ann.").raw == person
    assert structured.chat([user("Tell me of Ann.")]).raw == person
    found = scripted.chat([user("x")], schema=Person.model_json_schema()).message.content
    assert Person.model_validate_json(found or "") == person


# --- as an object -------------------------------------------------------------------------------------------------------


def test_what_is_written_down_leads_back_to_the_same_memory(tmp_path: Path) -> None:
    llm = HMTLLM(model="m", store=tmp_path, session_id="alice", temperature=0.3, stop=["x"], context_window=2048)
    found = [HMTLLM.from_dict(llm.to_dict()), HMTLLM.from_json(llm.to_json()), copy.deepcopy(llm), llm.model_copy()]
    found.append(pickle.loads(pickle.dumps(llm)))
    for one in found:
        assert one.to_dict() == llm.to_dict() and one.assistant() is llm.assistant()
    assert "class_name" in llm.to_dict() and "engine" not in llm.to_dict()
    with MemoryStore(tmp_path) as store:
        opened = HMTLLM(model="m", store=store)
        assert opened.to_dict()["store"] == str(tmp_path) and opened.assistant().store is store


def test_other_fields_mean_another_memory(tmp_path: Path) -> None:
    llm = HMTLLM(model="m", store=tmp_path / "a")
    first = llm.assistant()
    assert llm.assistant() is first
    other = llm.model_copy(update={"store": str(tmp_path / "b"), "model_name": "n"})
    assert (other.assistant().name, other.assistant().folder) == ("n", str(tmp_path / "b"))
    llm.store = str(tmp_path / "c")
    assert llm.assistant().folder == str(tmp_path / "c") and first.folder == str(tmp_path / "a")


def test_a_model_that_was_given_is_copied_and_not_pickled(llm: HMTLLM) -> None:
    assert copy.deepcopy(llm).assistant() is llm.assistant()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(llm)


def test_private_state_and_the_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_MODEL", "other/model")
    assert HMTLLM().model_name == HMTLLM().metadata.model_name == "other/model"
    assert HMTLLM(model_name="x").model_name == HMTLLM(model="x").model_name == "x"
    assert "Assistant" not in repr(HMTLLM(model="x"))
    with pytest.raises(ValueError, match=r"temprature\n +Extra inputs are not permitted"):
        HMTLLM(temprature=0.5)
