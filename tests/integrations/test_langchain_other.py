"""Any LangChain chat model answers in a session: our chat model around it reads, recalls and remembers."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel, FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field
from told import READER

from hmt_memory import Assistant, HMTError
from hmt_memory.retrieval.notes import HEADING
from langchain_hmt import HMTChatModel
from langchain_hmt.errors import HMTInvalidRequestError

ALICE: Any = {"configurable": {"session_id": "alice"}}
USAGE: Any = {"input_tokens": 70, "output_tokens": 3, "total_tokens": 73}
CALL: Any = {"name": "add", "args": {"a": 1, "b": 2}, "id": "call-1", "type": "tool_call"}


class Hosted(BaseChatModel):
    """A chat model of another package: it keeps what it is given, and says what it is told to."""

    model: str = "hosted-7b"
    answers: list[Any] = Field(default=["It is zanzibar."])
    seen: list[Any] = Field(default=[])

    @property
    def _llm_type(self) -> str:
        return "hosted"

    def _answer(self, way: str, messages: list[BaseMessage], stop: Any, options: Any) -> AIMessage:
        self.seen.append((way, messages, stop, options))
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        about = {"model_name": "hosted-7b-2026", "stop_reason": "end"}
        made = answer if isinstance(answer, AIMessage) else AIMessage(answer)
        return made.model_copy(update={"response_metadata": about, "usage_metadata": USAGE})

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer("whole", messages, stop, kwargs))])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        answer = self._answer("pieces", messages, stop, kwargs)
        for word in answer.text.split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=[{"type": "text", "text": f"{word} ", "index": 0}]))
        if "broken" in answer.text:
            raise RuntimeError("the line is broken")
        calls = [tool_call_chunk(name=c["name"], args='{"a": 1, "b": 2}', id=c["id"], index=0) for c in answer.tool_calls]
        rest: Any = {"response_metadata": answer.response_metadata, "usage_metadata": USAGE, "tool_call_chunks": calls}
        yield ChatGenerationChunk(message=AIMessageChunk(content="", additional_kwargs={"reasoning": "Hm."}, **rest))

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], choice=tool_choice, **kwargs)


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(READER, store=tmp_path / "memories")


@pytest.fixture
def hosted() -> Hosted:
    return Hosted()


@pytest.fixture
def chat(assistant: Assistant, hosted: Hosted) -> HMTChatModel:
    return HMTChatModel(model=hosted, engine=assistant, recent_tokens=40, replay_tokens=120)  # type: ignore[arg-type]


def talk(chat: HMTChatModel) -> None:
    chat.invoke([SystemMessage("Be brief."), HumanMessage("The secret word is zanzibar.")], ALICE)
    chat.invoke("Nothing else. " * 4, ALICE)


def contents(assistant: Assistant) -> list[str]:
    return [message.content for message in assistant.session("alice").messages()]


def test_it_is_given_the_system_prompt_and_notes_in_front_of_the_question(chat: HMTChatModel, hosted: Hosted) -> None:
    talk(chat)
    answer = chat.invoke("Which secret word?", ALICE, stop=["\n"], num_ctx=9)
    way, given, stop, options = hosted.seen[-1]
    assert [type(message) for message in given] == [SystemMessage, HumanMessage] and given[0].text == "Be brief."
    assert given[1].text.startswith(HEADING) and given[1].text.endswith("is zanzibar.\n\nWhich secret word?")
    assert (way, stop, options) == ("whole", ["\n"], {"num_ctx": 9})
    about = answer.response_metadata["hmt"]
    assert about["session_id"] == "alice" and len(about["message_ids"]) == 2 and about["view_tokens"] == 70
    assert "The secret word is zanzibar." in [passage["text"] for passage in about["recalled"]]
    assert answer.usage_metadata == USAGE and answer.response_metadata["model_name"] == "hosted-7b-2026"
    assert answer.response_metadata["finish_reason"] == "end"
    assert contents(chat.assistant())[-2:] == ["Which secret word?", "It is zanzibar."] == ["Which secret word?", answer.text]


@pytest.mark.parametrize("way", ["stream", "astream", "ainvoke"])
async def test_every_way_of_calling_remembers(way: str, chat: HMTChatModel, hosted: Hosted) -> None:
    if way == "stream":
        chunks = await asyncio.to_thread(lambda: list(chat.stream("Which?", ALICE)))
    elif way == "astream":
        chunks = [chunk async for chunk in chat.astream("Which?", ALICE)]
    else:
        chunks = [await chat.ainvoke("Which?", ALICE)]
    assert hosted.seen[0][0] == ("whole" if way == "ainvoke" else "pieces")
    whole = sum(chunks[1:], chunks[0])
    assert whole.text.strip() == "It is zanzibar." == contents(chat.assistant())[-1].strip()
    assert whole.usage_metadata == USAGE and whole.response_metadata["hmt"]["message_ids"] == [1, 2]
    if way != "ainvoke":
        assert [chunk.text for chunk in chunks if chunk.text] == ["It ", "is ", "zanzibar. "]
        assert whole.additional_kwargs == {"reasoning": "Hm."}


def test_an_answer_that_is_left_or_fails_leaves_nothing(chat: HMTChatModel, assistant: Assistant, hosted: Hosted) -> None:
    stream = chat.stream("Which?", ALICE)
    assert next(stream).text == "It "
    stream.close()  # type: ignore[attr-defined]
    hosted.answers = ["The line is broken", RuntimeError("no route")]
    hosted.seen.clear()
    with pytest.raises(RuntimeError, match="broken"):
        list(chat.stream("Which?", ALICE))
    with pytest.raises(RuntimeError, match="no route"):
        chat.invoke("Which?", ALICE)
    assert contents(assistant) == []


def test_a_call_is_one_run(chat: HMTChatModel, hosted: Hosted) -> None:
    started: list[Any] = []

    class Watch(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            started.append(kwargs.get("name", args))

    with get_usage_metadata_callback() as used:
        list(chat.stream("Which?", {**ALICE, "callbacks": [Watch()]}))
    assert len(started) == 1 and used.usage_metadata["hosted-7b-2026"]["output_tokens"] == 3


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_tools_are_the_model_s_own(way: str, chat: HMTChatModel, hosted: Hosted, assistant: Assistant) -> None:
    hosted.answers = [AIMessage("", tool_calls=[CALL]), "Three."]

    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    bound = chat.bind_tools([add], tool_choice="add")
    said: Any = bound.invoke("1 + 2?", ALICE) if way == "invoke" else sum(bound.stream("1 + 2?", ALICE), AIMessageChunk(""))
    assert said.tool_calls == [CALL] and hosted.seen[0][3]["choice"] == "add"
    assert hosted.seen[0][3]["tools"][0]["function"]["name"] == "add"
    bound.invoke([HumanMessage("1 + 2?"), said, ToolMessage("3", tool_call_id="call-1")], ALICE)
    assert [type(message) for message in hosted.seen[1][1]] == [HumanMessage, AIMessage, ToolMessage]
    assert hosted.seen[1][1][1].tool_calls == [CALL] and hosted.seen[1][1][2].tool_call_id == "call-1"
    assert [message.role for message in assistant.session("alice").messages()] == ["user", "assistant", "tool", "assistant"]


def test_an_agent_and_structured_output(chat: HMTChatModel, hosted: Hosted, assistant: Assistant) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    hosted.answers = [AIMessage("", tool_calls=[CALL]), "Three."]
    out = create_agent(chat, [add]).invoke({"messages": [HumanMessage("1 + 2?")]}, {"configurable": {"thread_id": "alice"}})
    assert out["messages"][-1].text == "Three." and contents(assistant) == ["1 + 2?", "", "3", "Three."]

    class Sum(BaseModel):
        a: int
        b: int

    hosted.answers = [AIMessage("", tool_calls=[{**CALL, "name": "Sum"}])]
    assert chat.with_structured_output(Sum).invoke("1 and 2") == Sum(a=1, b=2)


def test_without_a_session_a_long_conversation_is_noted_and_nothing_is_stored(chat: HMTChatModel, hosted: Hosted) -> None:
    chat.invoke("Hello.")
    assert hosted.seen[-1][1] == [HumanMessage("Hello.")]
    long: Any = [("system", "Be brief."), ("human", "The secret word is zanzibar."), ("ai", "Fine."), ("human", "So. " * 20)]
    answer = chat.invoke([*long, ("ai", "Yes."), ("human", "Which secret word?")])
    given = hosted.seen[-1][1]
    assert len(given) == 2 and "user: The secret word is zanzibar.\n\nWhich secret word?" in given[1].text
    assert "session_id" not in answer.response_metadata["hmt"] and chat.assistant().store.sessions() == []


def test_its_window_may_be_larger_than_the_reader_s(assistant: Assistant, hosted: Hosted) -> None:
    wide = HMTChatModel(model=hosted, engine=assistant, recent_tokens=100_000)  # type: ignore[arg-type]
    talk(wide)
    wide.invoke("Which secret word?", ALICE)
    assert len(hosted.seen[-1][1]) == 6


def test_models_without_pieces_and_the_usual_fakes(assistant: Assistant) -> None:
    chat = HMTChatModel(model=FakeListChatModel(responses=["One two."]), engine=assistant)  # type: ignore[arg-type]
    assert "".join(chunk.text for chunk in chat.stream("Hi", ALICE)) == "One two." == chat.invoke("Hi", ALICE).text
    generic = HMTChatModel(model=GenericFakeChatModel(messages=iter(["A b."])), engine=assistant)  # type: ignore[arg-type]
    assert generic.invoke("Hi", ALICE).text == "A b." and contents(assistant)[-1] == "A b."
    with pytest.raises(HMTInvalidRequestError, match="takes no tools"):
        chat.bind_tools([{"name": "add", "description": "", "parameters": {}}])


def test_what_cannot_be_is_refused(chat: HMTChatModel, hosted: Hosted) -> None:
    for model in (chat, hosted.bind(stop=["x"]), 7):
        with pytest.raises(ValueError, match="name of a local model, or a LangChain chat model"):
            HMTChatModel(model=model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"belongs to the model that answers: Hosted\(temperature="):
        HMTChatModel(model=hosted, temperature=0.5)  # type: ignore[arg-type]
    with pytest.raises(HMTError, match="Name another reader"):
        HMTChatModel(model=hosted, reader="same").invoke("Hi")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_reader_is_named_shared_and_loaded_late(hosted: Hosted, plain: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": hosted, "reader": plain, "store": str(tmp_path), "dtype": "float32", "device": "cpu"}
    chat = HMTChatModel(**given)
    assert chat.model_name == "hosted-7b" and chat.assistant().name == plain and not chat.assistant().is_loaded
    assert HMTChatModel(model=hosted).assistant().name == "smollm2-135m-instruct"  # type: ignore[arg-type]
    assert HMTChatModel(**given).assistant() is chat.assistant() is pickle.loads(pickle.dumps(chat)).assistant()
    assert chat.model_copy().assistant() is chat.assistant()
    chat.invoke("Hello.", ALICE)
    assert chat.assistant().session("alice").made_by().parts["backbone"]["name"] == plain  # type: ignore[union-attr]
    assert chat._get_ls_params()["ls_model_name"] == "hosted-7b"
    code = (
        "import sys, langchain_hmt as h; from langchain_core.language_models import FakeListChatModel as F;"
        "h.HMTChatModel(model=F(responses=['x'])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "-c", code], check=True)
